"""Edges against exact ablation of direct paths, that against a transformer written out, and the sums that must hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.circuits.effects.direct import agreement, direct_effects
from analysis.circuits.effects.edges import edge_effects, edge_weights
from analysis.circuits.effects.ends import Span, spans
from analysis.circuits.effects.paths import EARLIER, NONE, SAME, reach
from analysis.circuits.effects.placed import by_node, place
from analysis.circuits.effects.reference import mean_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.errors import SaescopeError
from tests.analysis.circuits.effects.edge_toys import (
    ATTN,
    CODER,
    LAST,
    RESID,
    UPDATE,
    dense,
    every_node,
    linear_metric,
    linear_saes,
    metric,
    pairs,
    sample,
    signed_sae,
)
from tests.training.model.dense import forward, random_sae
from tests.training.model.test_frozen import configs
from tests.training.model.test_models import save_random
from training.model.frozen import HELD
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site


@pytest.fixture(scope="module")
def native() -> Model:
    return load_model("native:n_layers=3", dtype="float64")


@pytest.fixture(scope="module")
def model(native: Model) -> CircuitModel:
    """Not linear: features of five of 96, an update site."""
    saes = {RESID: random_sae(0), ATTN: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True),
            UPDATE: random_sae(3)}
    return CircuitModel(native, saes)


def one_span(model: CircuitModel, examples: Examples) -> Span:
    (span,) = spans(
        model, examples, metric, reference="counterfactual", means=None, weights=None, batch=32, freeze=None
    )
    return span


@pytest.mark.parametrize(("ends", "reference"), [("clean", "counterfactual"), ("both", "mean"), ("both", "zero")])
def test_a_linear_models_edges_are_exact(native: Model, ends: Any, reference: Any) -> None:
    circuit, examples = CircuitModel(native, linear_saes()), pairs()
    means = mean_states(circuit, [examples])
    nodes = sample(every_node(circuit, examples), 10)
    options: Any = {"ends": ends, "reference": reference, "means": means, "freeze": HELD}
    found = edge_effects(circuit, examples, linear_metric, nodes, **options)
    exact = direct_effects(circuit, examples, linear_metric, nodes, **options)
    size = np.abs(dense(exact)).max()
    assert size > 1e-3 and len(found) > 10 and {ERROR, SKIP} < set(nodes.feature[found.source].tolist())
    np.testing.assert_allclose(dense(found), dense(exact), atol=1e-9 * size, rtol=1e-9)
    assert agreement(found, exact) > 1 - 1e-9 and agreement(found, exact, by_example=True) > 1 - 1e-9


def test_nothing_passes_through_a_site_between(native: Model) -> None:
    """Residual sites one behind the other: the first acts on the third, but not directly."""
    chain = [RESID, Site(input="blocks.1.hook_resid_post"), LAST]
    circuit, examples = CircuitModel(native, {site: signed_sae(i) for i, site in enumerate(chain)}), pairs()
    reached = reach(circuit, examples)
    assert reached.how.tolist() == [[NONE, EARLIER, NONE, NONE], [NONE, NONE, EARLIER, NONE], [NONE, NONE, NONE, SAME]]
    assert [reached.separates(i) for i in range(3)] == [True, True, True]
    nodes = sample(every_node(circuit, examples), 16)
    for found in (edge_effects(circuit, examples, metric, nodes), direct_effects(circuit, examples, metric, nodes)):
        jumps = nodes.site[found.target] - nodes.site[found.source]
        assert set(jumps[found.target != OUTPUT].tolist()) == {1}
        assert set(nodes.position[found.source[found.target == OUTPUT]].tolist()) == {4}
        possible = set(zip(*(a.tolist() for a in reached.edges(nodes)), strict=True))
        assert set(zip(found.source.tolist(), found.target.tolist(), strict=True)) <= possible
    without = CircuitModel(native, {chain[0]: signed_sae(0), chain[2]: signed_sae(2)})
    assert reach(without, examples).how[0, 1] == EARLIER


def test_edges_out_of_a_node_sum_to_its_effect(model: CircuitModel) -> None:
    """The chain rule: over all downstream nodes, with the clean point's gradients."""
    examples = pairs(2, 4)
    nodes = every_node(model, examples)
    found = edge_effects(model, examples, metric, nodes, ends="clean")
    span = one_span(model, examples)
    steps = span.steps(model, place(model, nodes, examples.keep))
    effects = by_node(steps, edge_weights(model, examples, metric, method="attribution"), len(examples), len(nodes)).numpy()
    assert np.abs(effects).max() > 1e-4
    np.testing.assert_allclose(dense(found).sum(axis=2), effects, rtol=1e-9, atol=1e-12)
    assert {UPDATE, CODER, RESID} <= {model.sites[i] for i in nodes.site[found.source]}


def test_both_ends_are_seen(model: CircuitModel) -> None:
    """Going back along the same way undoes it; and features of the counterfactual alone have edges."""
    examples = pairs()
    nodes, weights = sample(every_node(model, examples), 40), edge_weights(model, examples, metric, method="attribution")
    there = dense(edge_effects(model, examples, metric, nodes, weights=weights))
    back = dense(edge_effects(model, examples.swapped(), metric, nodes, weights=weights))
    np.testing.assert_allclose(back, -there, rtol=1e-9, atol=1e-13)
    clean = dense(edge_effects(model, examples, metric, nodes, weights=weights, ends="clean"))
    span = one_span(model, examples)
    code = {site: state.code.to_dense() for site, state in span.clean.items()}
    position, example = examples.keep.nonzero()[:, 1].numpy(), examples.keep.nonzero()[:, 0].numpy()
    for example_index in range(len(examples)):
        for j, (site, p, f) in enumerate(nodes.triples):
            row = int(np.flatnonzero((example == example_index) & (position == p))[0])
            if f >= 0 and not code[model.sites[site]][row, f]:
                assert not clean[example_index, :, j].any()
    later = (nodes.site > 0) & nodes.features
    newly = there[:, :, :-1].any(axis=(0, 1)) & ~clean[:, :, :-1].any(axis=(0, 1)) & later
    assert newly.any()


def test_exact_edges_are_those_of_a_transformer_written_out(model: CircuitModel, native: Model) -> None:
    """Each site held at its clean target but one, whose node is moved; values and errors from the formulas alone."""
    examples = pairs()
    written = {RESID: ("resid_post.0", None), CODER: ("mlp_out.1", "mlp_in.1"), UPDATE: ("resid_post.2", "resid_pre.2")}
    small = CircuitModel(native, {site: model.saes[site] for site in written})
    nodes = sample(every_node(small, examples), 10, seed=3)
    weights = edge_weights(small, examples, metric, method="attribution")
    found = dense(direct_effects(small, examples, metric, nodes, weights=weights, ends="clean"))

    def parts(site: Site, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sae = small.saes[site]
        code = sae.encode(x)
        values = torch.zeros(len(x), sae.d_sae, dtype=x.dtype)
        values[code.rows(), code.feature.long()] = code.value
        offset = sae.bias() + (sae.bypass(x) if sae.has_offsets else torch.zeros_like(target))
        rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
        return values, target - values @ rows - offset, offset

    def run(tokens: Tensor, targets: dict[Site, Tensor]) -> tuple[dict[Site, Any], Tensor]:
        seen: dict[str, Tensor] = {}
        out: dict[Site, Any] = {}

        def at(point: str, act: Tensor) -> Tensor:
            for site, (writes, reads) in written.items():
                if writes == point:
                    before = seen[reads] if reads else act
                    target = act - before if site.update else act
                    out[site] = parts(site, before[examples.keep], target[examples.keep]), target[examples.keep]
                    if site in targets:
                        act = act.clone()
                        act[examples.keep] = targets[site] + (before[examples.keep] if site.update else 0)
            seen[point] = act
            return act

        with torch.no_grad():
            logits = forward(native, tokens, at)
        return out, metric(logits[:, -1], examples)

    clean, m = run(examples.clean, {})
    corrupt, _ = run(examples.corrupt, {})
    at = examples.keep.nonzero()
    for i, (site, position, feature) in enumerate(nodes.triples):
        source, rows = small.sites[site], at[:, 1] == position
        (v, e, o), target = clean[source]
        (v_ref, e_ref, o_ref), _ = corrupt[source]
        direction = small.saes[source].W_dec[feature] / small.saes[source].W_dec[feature].norm()
        change = {ERROR: e_ref - e, SKIP: o_ref - o}.get(feature, (v_ref - v)[:, [feature]] * direction)
        targets = {s: clean[s][1] for s in written} | {source: target + change * rows[:, None]}
        moved, m_moved = run(examples.clean, targets)
        np.testing.assert_allclose(found[:, i, -1], m_moved - m, atol=1e-12)
        for j, (d_site, d_position, d_feature) in enumerate(nodes.triples):
            d = small.sites[d_site]
            which = {ERROR: 1, SKIP: 2}.get(d_feature, 0)
            difference = moved[d][0][which] - clean[d][0][which]
            unit = small.saes[d].W_dec[d_feature] / small.saes[d].W_dec[d_feature].norm()
            by = (weights[d] @ unit) * difference[:, d_feature] if which == 0 else (weights[d] * difference).sum(1)
            expected = torch.zeros(len(examples), dtype=by.dtype).index_add(0, at[:, 0], by * (at[:, 1] == d_position))
            np.testing.assert_allclose(found[:, i, j], expected if d_site > site else 0 * expected, atol=1e-12)
    assert np.abs(found[:, :, :-1]).max() > 1e-6


def test_nodes_anywhere_are_sums_over_positions(model: CircuitModel) -> None:
    examples = pairs(2, 4)
    kinds = {(site, feature) for site, _, feature in sample(every_node(model, examples), 12).triples}
    nodes = Nodes.of([(site, p, feature) for site, feature in kinds for p in (1, 2, 3)])
    found = edge_effects(model, examples, metric, nodes)
    over = Nodes.of([(site, ANYWHERE, feature) for site, _, feature in nodes.triples])
    whole = dense(edge_effects(model, examples, metric, over))
    name = {triple: i for i, triple in enumerate(over.triples)}
    to = np.array([name[site, ANYWHERE, feature] for site, _, feature in nodes.triples])
    expected = np.zeros_like(whole)
    target = np.append(to, len(over))[found.target]
    for example, row in enumerate(found.values.toarray()):
        np.add.at(expected[example], (to[found.source], target), row)
    np.testing.assert_allclose(whole, expected, rtol=1e-9, atol=1e-12)


def test_batches_change_nothing(model: CircuitModel) -> None:
    examples = pairs(4, 4)
    nodes, weights = sample(every_node(model, examples), 12), edge_weights(model, examples, metric, n_steps=2)
    told: list[int] = []
    whole, *parts = (
        edge_effects(model, examples, metric, nodes, weights=given, batch=batch, progress=told.append)
        for given, batch in ((weights, 32), (weights, 3), (edge_weights(model, examples, metric, n_steps=2, batch=2), 1))
    )
    assert len(whole) > 5 and told == [4, 3, 1, 1, 1, 1, 1]
    for part in parts:
        np.testing.assert_allclose(dense(part), dense(whole), rtol=1e-9, atol=1e-13)


def test_bad_input_is_refused(model: CircuitModel) -> None:
    examples = pairs()
    with pytest.raises(SaescopeError, match="counterfactual"):
        edge_effects(model, replace(examples, corrupt=None), metric, Nodes.empty())
    with pytest.raises(SaescopeError, match=r"position 5.* 5 tokens"):
        edge_effects(model, examples, metric, Nodes.of([(0, 5, 0)]))
    none = edge_effects(model, examples, metric, Nodes.empty())
    assert len(none) == 0 and none.values.shape == (3, 0)


@pytest.mark.parametrize(("name", "attn_to_mlp"), [("llama", True), ("gemma2", True), ("neox", False)])
def test_grouped_queries_post_norms_and_parallel_blocks(name: str, attn_to_mlp: bool, tmp_path: Path) -> None:
    """The same edges as exact ablation, and none from attention to the MLP beside it."""
    save_random(tmp_path, configs()[name])
    model, examples = load_model(f"local:{tmp_path}", dtype="float64"), pairs()
    circuit = CircuitModel(model, linear_saes())
    how = reach(circuit, examples).how[circuit.index[ATTN], circuit.index[CODER]]
    assert how == (SAME if attn_to_mlp else NONE)
    nodes = sample(every_node(circuit, examples), 7)
    found = edge_effects(circuit, examples, linear_metric, nodes, freeze=HELD)
    exact = direct_effects(circuit, examples, linear_metric, nodes, freeze=HELD)
    size = np.abs(dense(exact)).max()
    np.testing.assert_allclose(dense(found)[..., :-1], dense(exact)[..., :-1], atol=1e-7 * size, rtol=1e-6)
    # Gemma 2 caps its logits by a tanh
    np.testing.assert_allclose(dense(found)[..., -1], dense(exact)[..., -1], atol=1e-4 * size, rtol=1e-6)
