"""Edges by head, scores by pairs, and traces: sums, doubling, and a model whose wiring is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.circuits.attribution.heads import head_loadings
from analysis.circuits.attribution.linear import LinearPrompt, Target
from analysis.circuits.attribution.qk import attention, score_pairs
from analysis.circuits.attribution.trace import Score, trace
from analysis.circuits.model import CircuitModel
from analysis.circuits.selftest.known import Known
from analysis.circuits.selftest.lookup import two_hop_lookup
from sae.errors import SaescopeError
from tests.analysis.circuits.attribution.cases import (
    native,
    plain_sae,
    prompt,
    random_model,
    taken_apart,
    with_saes,
    with_transcoders,
)
from training.site import Site

ONE_LAYER_APART = ("blocks.0.hook_resid_post", "blocks.1.hook_attn_out")
ARCHITECTURES = ["llama", "gemma3", "neox", "phi", "gpt2"]


@pytest.fixture(scope="module")
def known() -> Known:
    return two_hop_lookup(6)


@pytest.fixture(scope="module")
def looked_up(known: Known) -> tuple[LinearPrompt, str, str]:
    """A pair in which the pointer decides: its prompt taken apart, the pointer, and the answer."""
    i, pair = next((i, pair) for i, pair in enumerate(known.task.train) if pair.clean[1] != pair.corrupt[1])
    circuit = CircuitModel(known.circuit.model, {
        site: sae for site, sae in known.circuit.saes.items() if site.output != "blocks.0.hook_resid_pre"
    })
    return LinearPrompt(circuit, known.examples.clean[i], mlps="neurons"), pair.clean[1], pair.right[0]


def called(linear: LinearPrompt, hook: str, position: int, feature: int) -> str:
    site = next(i for i, site in enumerate(linear.sites) if site.output == f"blocks.{hook}")
    return linear.name(Target(site, position, feature))


def targets_at(linear: LinearPrompt, hook: str) -> list[Target]:
    site = next(i for i, site in enumerate(linear.sites) if site.output == hook)
    return [linear.target(int(i)) for i in np.flatnonzero((linear.nodes.site == site) & (linear.nodes.feature >= 0))]


# -- OV ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", *ARCHITECTURES])
def test_head_loadings_sum_to_the_edge(name: str, tmp_path: Path) -> None:
    """Between a residual site and the attention output behind it every path takes one head, and doubling says which."""
    model = native() if name == "native" else random_model(tmp_path, name)
    linear = taken_apart(with_saes(model, ONE_LAYER_APART), prompt(bos=None))
    target = max(targets_at(linear, ONE_LAYER_APART[1]), key=lambda one: one.position)
    (found,) = head_loadings(linear, [target])
    assert np.abs(found.edges).max() > 1e-2
    scale = np.abs(found.edges).max()
    np.testing.assert_allclose(found.loadings.sum((0, 1)), found.edges, atol=1e-6 * scale)
    assert not found.loadings[[0, 2]].any() and (np.abs(found.loadings[1]).sum(1) > 1e-3).all()
    # by doubling a source: what each head's output at the target's position gains, read by the feature's encoder
    source = int(np.argsort(-np.abs(found.edges))[0])
    z, moved = by_doubling(linear, source)
    (grad,) = torch.autograd.grad(
        linear.values(linear.run, [target], torch.zeros(1, dtype=torch.long)).sum(), z, retain_graph=True
    )
    by_head = (grad[0].detach() * moved).sum((0, 2))
    np.testing.assert_allclose(by_head.numpy(), found.loadings[1, :, source], atol=1e-6 * scale)


def by_doubling(linear: LinearPrompt, source: int) -> tuple[torch.Tensor, torch.Tensor]:
    """hook_z of layer 1, and what doubling a source adds to it: [positions, heads, d_head]."""
    hook, site = "blocks.1.attn.hook_z", linear.sites[int(linear.nodes.site[source])]
    first = int(np.flatnonzero(linear.nodes.site == linear.nodes.site[source])[0])
    one = {s: leaf[None] for s, leaf in linear.leaves.items()}
    more = {s: leaf.clone() for s, leaf in one.items()}
    more[site][0, int(linear.nodes.position[source])] += linear._vectors[site].vector[source - first]
    before, after = (linear.run_of(leaves).watched[hook][0].detach() for leaves in (one, more))
    return linear.run.watched[hook], after - before


def test_what_no_head_takes_first_is_the_rest() -> None:
    """Two layers of attention and no site between: loadings by first head, and the straight way for the same position."""
    linear = taken_apart(with_transcoders(native(), skip=False))
    top = linear.logit(int(linear.logits.argmax()))
    (found,) = head_loadings(linear, [top])
    last = linear.nodes.position == 6
    np.testing.assert_allclose(found.rest[~last], 0, atol=1e-9)
    # tokens see all three layers, the first transcoder two, the last one none
    by_site = [np.abs(found.loadings[:, :, linear.nodes.site == site]).sum((1, 2)) > 0 for site in range(4)]
    assert [mine.tolist() for mine in by_site] == [
        [True, True, True], [False, True, True], [False, False, True], [False, False, False],
    ]
    # straight into the logit: final norm at its held scale, and the unembedding less its mean
    source = int(np.flatnonzero(last & (linear.nodes.site == 3))[0])
    np.testing.assert_allclose(found.rest[source], found.edges[source])
    heads = found.of_edge(int(np.flatnonzero(linear.nodes.site == 1)[3]), 3)
    assert len(heads) == 3 and abs(heads[0][2]) >= abs(heads[2][2]) > 0


# -- QK ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", *ARCHITECTURES])
def test_pairs_sum_to_the_score(name: str, tmp_path: Path) -> None:
    """Rotary positions, grouped queries, normed queries and keys; held to the score that the model itself shows."""
    model = native() if name == "native" else random_model(tmp_path, name)
    linear = taken_apart(with_saes(model), prompt(bos=None))
    for layer, head, query, key in ((1, 0, 6, 2), (2, 3, 5, 5), (0, 2, 4, 0)):
        found = score_pairs(linear, layer, head, query, key)
        shown = float(linear.run.watched[f"blocks.{layer}.attn.hook_attn_scores"].detach()[0, head, query, key])
        largest = max(np.abs(found.pairs).max(), abs(shown))
        assert abs(found.score - shown) < 1e-5 * largest and abs(found.pairs.sum() - shown) < 1e-5 * largest
        np.testing.assert_allclose(found.by_query.sum(), found.by_key.sum())
        positions = linear.nodes.position[list(found.query_nodes)], linear.nodes.position[list(found.key_nodes)]
        assert positions[0].max() == query and positions[1].max() == key
    shown = attention(linear, 1)
    np.testing.assert_allclose(shown.sum(2), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["native", "llama"])
def test_a_pair_is_what_doubling_both_does_beyond_doubling_each(name: str, tmp_path: Path) -> None:
    model = native() if name == "native" else random_model(tmp_path, name)
    linear = taken_apart(with_saes(model, ONE_LAYER_APART), prompt(bos=None))
    found = score_pairs(linear, 1, 1, 6, 3)
    i, j, amount = next(pair for pair in found.largest(20) if -1 not in pair[:2])
    score = {}
    for doubled in ((), (i,), (j,), (i, j)):
        leaves = {s: leaf[None].clone() for s, leaf in linear.leaves.items()}
        for node in doubled:
            site = linear.sites[int(linear.nodes.site[node])]
            first = int(np.flatnonzero(linear.nodes.site == linear.nodes.site[node])[0])
            leaves[site][0, int(linear.nodes.position[node])] += linear._vectors[site].vector[node - first]
        score[doubled] = float(linear.run_of(leaves).watched["blocks.1.attn.hook_attn_scores"].detach()[0, 1, 6, 3])
    assert amount == pytest.approx(score[i, j] - score[i,] - score[j,] + score[()], rel=1e-5)


def test_two_hops_show_the_expected_pair(known: Known, looked_up: tuple[LinearPrompt, str, str]) -> None:
    """The second head looks from the moved pointer to the entry of that key: one pair makes up its whole score."""
    linear, pointer, _ = looked_up
    last = len(linear.tokens) - 1
    names = {name: i for i, name in enumerate(names_of(known))}
    entry = 3 + "0123".index(pointer)
    found = score_pairs(linear, 1, 0, last, entry)
    ((query, key, amount), *others) = found.largest(3)
    assert linear.names[query] == called(linear, "0.hook_resid_post", last, names[f"moved:{pointer}"])
    assert linear.names[key] == called(linear, "0.hook_resid_post", entry, names[f"key:{pointer}"])
    assert amount > 0.99 * found.score and all(abs(other) < 0.02 * amount for _, _, other in others)


def names_of(known: Known) -> list[str]:
    """The directions of the model, in the order of its features."""
    kinds = ["query", "points", *(f"{kind}:{x}" for kind in ("pointer", "key", "moved") for x in "0123")]
    kinds += [f"{kind}:{x}" for kind in ("value", "found") for x in "wxyz"]
    found = [*kinds, *(f"noise:{x}" for x in ".,"), *(f"idle:{x}" for x in ".,")]
    assert len(found) == next(iter(known.circuit.saes.values())).d_sae
    return found


# -- traces ----------------------------------------------------------------------------------------------------------------


def test_a_trace_goes_down_the_known_hops(known: Known, looked_up: tuple[LinearPrompt, str, str]) -> None:
    linear, pointer, answer = looked_up
    last, entry = len(linear.tokens) - 1, 3 + "0123".index(pointer)
    names = {name: i for i, name in enumerate(names_of(known))}
    token = int(known.examples.right[known.task.train.index(next(
        pair for pair in known.task.train if pair.clean[1] == pointer and pair.right[0] == answer))][0])
    found = trace(linear, linear.logit(token), top=1, depth=4)
    chain, step = [], found
    while True:
        (part,) = step.parts
        chain.append(part.names[0])
        if not part.steps:
            break
        (step,) = part.steps
    assert chain == [
        called(linear, "1.hook_resid_post", last, names[f"found:{answer}"]),
        called(linear, "1.hook_attn_out", last, names[f"found:{answer}"]),
        called(linear, "0.hook_resid_post", entry, names[f"value:{answer}"]),
        f"embedding/f{int(linear.tokens[entry])}@{entry}",
    ]
    assert found.explained > 0.3 and found.errors < 0.05


def test_every_step_adds_up(tmp_path: Path) -> None:
    linear = taken_apart(with_saes(random_model(tmp_path, "llama")), prompt(bos=None))
    for start in (linear.logit(7), Score(2, 1, 6, 3)):
        found = trace(linear, start, top=3 if isinstance(start, Score) else 8, depth=3)
        seen = 0
        steps = [found]
        while steps:
            step = steps.pop()
            total = sum(part.amount for part in step.parts) + step.rest + step.constant
            assert total == pytest.approx(step.value, abs=1e-4 * max(1, abs(step.value)))
            assert 0 < step.explained <= 1 and 0 <= step.errors <= 1 and len(step.parts) <= 8
            steps += [below for part in step.parts for below in part.steps]
            seen += 1
        assert seen >= 3
    assert all(len(part.names) == 2 for part in trace(linear, Score(2, 1, 6, 3), depth=1).parts)


def test_what_cannot_be_traced_is_refused() -> None:
    linear = taken_apart(with_saes(native()))
    bad = [Score(9, 0, 3, 2), Score(0, 9, 3, 2), Score(0, 0, 2, 3), Score(0, 0, 70, 3), Target(1, 3, 10_000),
           Target(len(linear.sites), 2, 5), Target(len(linear.sites), 6, 10_000)]
    for start in bad:
        with pytest.raises(SaescopeError):
            trace(linear, start)
    with pytest.raises(SaescopeError):
        trace(linear, linear.logit(3), top=0)


def test_sites_whose_vectors_are_not_added_have_no_heads() -> None:
    model = native()
    site = Site(input="blocks.1.mlp.hook_post")
    linear = taken_apart(CircuitModel(model, {site: plain_sae(model, site.input)}))
    with pytest.raises(SaescopeError, match=r"mlp\.hook_post"):
        head_loadings(linear, [linear.logit(3)])
