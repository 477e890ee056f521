"""Interventions against a dense model in fp64: what they do, and the slope of doing a little of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.circuits.effects.reference import mean_states, reference_states
from analysis.circuits.interventions.intervene import intervene
from analysis.circuits.interventions.moves import Intervention
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.errors import SaescopeError
from tests.training.model.dense import CODER, PLAIN, READ, UPDATE, WRITTEN, forward, mask, random_sae, tokens
from training.model.load import load_model
from training.site import Site

SITES = [PLAIN, UPDATE, CODER]
none = torch.zeros(2, 0, dtype=torch.long)


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    saes = {PLAIN: random_sae(1), UPDATE: random_sae(2, kind="jumprelu"), CODER: random_sae(3, skip=True)}
    return CircuitModel(load_model("native:n_layers=3", dtype="float64"), saes)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples(tokens(), tokens().flip(0), none, none, mask())


def metric(logits: Tensor, examples: Examples) -> Tensor:
    return (logits.log_softmax(-1)[:, :7] * torch.linspace(-1, 1, 7, dtype=logits.dtype)).sum(-1)


@dataclass
class Parts:
    """A site's target with every feature written out, `[n_seqs, n_ctx, _]`."""

    target: Tensor
    acts: Tensor
    skip: Tensor
    error: Tensor

    def plus(self, other: "Parts", t: float) -> "Parts":
        return Parts(*(a + t * b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


Change = Callable[[Site, Parts], Parts]


@dataclass
class Dense:
    """The model's run with changed parts; what the sites held is in `parts`."""

    model: CircuitModel
    ids: Tensor
    keep: Tensor
    change: Change = lambda site, parts: parts
    parts: dict[Site, Parts] = field(default_factory=dict)
    found: dict[Site, Parts] = field(default_factory=dict)

    def run(self) -> Tensor:
        seen: dict[str, Tensor] = {}

        def at(point: str, acts: Tensor) -> Tensor:
            for site in SITES:
                if WRITTEN[site] == point:
                    before = seen.get(READ[site], acts)
                    self.found[site] = found = self.apart(site, before, acts - before if site.update else acts)
                    self.parts[site] = self.change(site, found)
                    new = self.parts[site].target + (before if site.update else 0)
                    acts = torch.where(self.keep[..., None], new, acts)
            seen[point] = acts
            return acts

        with torch.no_grad():
            return forward(self.model.model, self.ids, at)[:, -1]

    def apart(self, site: Site, before: Tensor, target: Tensor) -> Parts:
        sae = self.model.saes[site]
        z = (before - sae.input.mean) * sae.input.scale
        pre = (z - sae.b_dec if sae.subtracts_b_dec else z) @ sae.W_enc + sae.b_enc
        select = sae.select()
        least = pre.topk(select.k).values[..., -1:] if select.mode == "topk" else select.threshold
        norms = sae.W_dec.norm(dim=1)
        acts = torch.where((pre >= least) & (pre > 0), pre, 0) * norms / sae.target.scale
        skip = z @ sae.W_skip.t() / sae.target.scale if sae.config.skip else torch.zeros_like(target)
        return Parts(target, acts, skip, target - self.whole(site, acts, skip))

    def whole(self, site: Site, acts: Tensor, skip: Tensor) -> Tensor:
        sae = self.model.saes[site]
        bias = sae.b_dec / sae.target.scale + sae.target.mean
        return acts @ (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)) + bias + skip

    def watch(self, nodes: Nodes) -> Tensor:
        columns = []
        for i, position, feature in nodes.triples:
            parts = self.parts[self.model.sites[i]]
            value = parts.error.norm(dim=-1) if feature == ERROR else parts.skip.norm(dim=-1) if feature == SKIP else (
                parts.acts[..., feature])
            value = value * self.keep
            columns.append(value.sum(1) if position == ANYWHERE else value[:, position])
        return torch.stack(columns, 1)


def doing(model: CircuitModel, one: Intervention, other: dict[Site, Parts]) -> Change:
    """An intervention on dense parts; `other` is what `ablate` and `patch` move to."""
    def change(site: Site, found: Parts) -> Parts:
        acts, skip, error = found.acts.clone(), found.skip.clone(), found.error.clone()
        for i, position, feature in one.nodes.triples:
            if model.sites[i] == site:
                to, at = other.get(site, found), (slice(None), slice(None) if position == ANYWHERE else position)
                array, goal = ((error, to.error), (skip, to.skip))[feature == SKIP] if feature < 0 else (
                    acts[..., feature], to.acts[..., feature])
                array[at] = {"scale": one.value * array[at], "add": array[at] + one.value, "patch": goal[at],
                             "ablate": goal[at], "clamp": torch.full_like(array[at], one.value)}[one.mode]
        moved = Dense.whole(dense_of(model), site, acts, skip) + error
        return Parts(moved, acts, skip, error)

    return change


def dense_of(model: CircuitModel, ids: Tensor | None = None, **options: Any) -> Dense:
    return Dense(model, tokens() if ids is None else ids, mask(), **options)


def active(model: CircuitModel, examples: Examples, site: int, n: int = 2) -> list[tuple[int, int, int]]:
    """Nodes that are active in the first example: features at its kept positions."""
    dense = dense_of(model)
    dense.run()
    rows = (dense.parts[model.sites[site]].acts[0] * examples.keep[0][:, None]).nonzero().tolist()
    return [(site, position, feature) for position, feature in rows[-n:]]


def group(model: CircuitModel, examples: Examples) -> Nodes:
    """Features of all three sites at positions and anywhere, active and not."""
    anywhere = [(s, ANYWHERE, f) for s, _, f in active(model, examples, 1, 5)[:1]]
    features = [t for site in (0, 2) for t in active(model, examples, site)]
    return Nodes.of([*features, *anywhere, (0, 9, 90)])


def vectors() -> Nodes:
    return Nodes.of([(0, ANYWHERE, ERROR), (1, 7, ERROR), (2, ANYWHERE, SKIP), (2, 9, ERROR)])


def watched(model: CircuitModel, examples: Examples) -> Nodes:
    ends = [t for site in range(3) for t in active(model, examples, site, 6)]
    return Nodes.of([*ends, *group(model, examples).triples, (1, ANYWHERE, ERROR), (2, 9, SKIP), (2, ANYWHERE, SKIP)])


CASES: list[tuple[str, str, float]] = [
    ("features", "ablate", 0.0), ("features", "patch", 0.0), ("features", "clamp", 0.7), ("features", "add", -0.4),
    ("features", "scale", 1.5), ("vectors", "ablate", 0.0), ("vectors", "patch", 0.0), ("vectors", "scale", 0.5),
]


@pytest.mark.parametrize(("what", "mode", "number"), CASES)
def test_effects_and_predictions_are_the_dense_models(
    model: CircuitModel, examples: Examples, what: str, mode: Any, number: float
) -> None:
    one = Intervention(group(model, examples) if what == "features" else vectors(), mode, number)
    watch = watched(model, examples)
    found = intervene(model, examples, [one], metric, watch=watch)

    clean, other = dense_of(model), dense_of(model, tokens().flip(0))
    before, _ = clean.run(), other.run()
    zero = {s: Parts(p.target, p.acts * 0, p.skip * 0, p.error * 0) for s, p in clean.parts.items()}
    change = doing(model, one, other.parts if mode == "patch" else zero)
    after = dense_of(model, change=change)
    m = [metric(before, examples), metric(after.run(), examples)]
    # what a small part of the clean run's moves does, all sites at once
    steps = {s: change(s, p).plus(p, -1) for s, p in clean.parts.items()}
    ends = [dense_of(model, change=lambda s, p, t=t: p.plus(steps[s], t)) for t in (1e-6, -1e-6)]
    slopes = [metric(end.run(), examples) for end in ends]
    near = [end.watch(watch) for end in ends]

    assert found.metric is not None
    torch.testing.assert_close(found.metric.before, m[0])
    torch.testing.assert_close(found.metric.after, m[1])
    torch.testing.assert_close(found.metric.predicted, m[0] + (slopes[0] - slopes[1]) / 2e-6, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.values.before, clean.watch(watch))
    torch.testing.assert_close(found.values.after, after.watch(watch))
    expected = clean.watch(watch) + (near[0] - near[1]) / 2e-6
    torch.testing.assert_close(found.values.predicted, expected, rtol=1e-6, atol=1e-7)
    # that something happened, downstream too
    assert (m[1] - m[0]).abs().min() > 1e-3
    downstream = torch.tensor([site == 2 for site in watch.site.tolist()])
    assert ((found.values.after - found.values.before)[:, downstream].abs() > 1e-3).any()
    change_of_logits = (after.run() - before).mean(0)
    best = (change_of_logits - change_of_logits.mean()).abs().topk(10)
    assert [token for token, _ in found.logits] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([c for _, c in found.logits]).abs().double(), best.values, rtol=1e-5, atol=1e-6)


def test_small_interventions_do_what_was_predicted(model: CircuitModel, examples: Examples) -> None:
    nodes, watch = group(model, examples), watched(model, examples)
    gaps = []
    for number in (1.02, 1.01):
        found = intervene(model, examples, [Intervention(nodes, "scale", number)], metric, watch=watch)
        assert found.metric is not None
        gaps.append(float((found.metric.after - found.metric.predicted).abs().sum()))
        moved = (found.metric.after - found.metric.before).abs().sum()
    assert gaps[1] < 0.02 * moved and 3 < gaps[0] / gaps[1] < 5  # second order


def test_ablation_to_means_is_what_exact_ablation_gives(model: CircuitModel, examples: Examples) -> None:
    means = mean_states(model, [examples])
    states = reference_states(model, examples, "mean", means)
    (node,) = active(model, examples, 0, 1)
    found = intervene(model, examples, [Intervention(Nodes.of([node]))], metric, watch=Nodes.of([node]), reference=states)
    feature = states[PLAIN].code.to_dense()[:, node[2]]
    at = examples.keep.nonzero()
    expected = [float(feature[((at[:, 0] == i) & (at[:, 1] == node[1])).nonzero()].sum()) for i in range(2)]
    torch.testing.assert_close(found.values.after[:, 0], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.values.predicted, found.values.after)


def test_interventions_follow_each_other(model: CircuitModel, examples: Examples) -> None:
    nodes = Nodes.of(active(model, examples, 0, 2))
    both = [Intervention(nodes, "clamp", 2.0), Intervention(nodes, "scale", 0.25)]
    found = intervene(model, examples, both, watch=nodes)
    first = found.values.after[0]
    torch.testing.assert_close(first, torch.full_like(first, 0.5))
    assert found.metric is None and [row["node"] for row in found.table(["a", "b"])] == ["a", "b"]


def test_plain_tokens_and_nothing_done(model: CircuitModel, examples: Examples) -> None:
    found = intervene(model, tokens(), [], lambda logits, _: logits[:, 5], watch=Nodes.of(active(model, examples, 1)))
    assert found.metric is not None
    assert torch.equal(found.metric.before, found.metric.after) and torch.equal(found.metric.before, found.metric.predicted)
    assert torch.equal(found.values.before, found.values.after) and {change for _, change in found.logits} == {0.0}
    assert found.table()[0]["node"] == "metric"


@pytest.mark.parametrize(("one", "said"), [
    (Intervention(Nodes.of([(3, 1, 0)])), "site 3"),
    (Intervention(Nodes.of([(0, 1, 96)])), "96"),
    (Intervention(Nodes.of([(0, 0, 5)])), "position 0"),
    (Intervention(Nodes.of([(0, 12, 5)])), "position 12"),
    (Intervention(Nodes.of([(0, 1, SKIP)]), "scale"), "skip"),
    (Intervention(Nodes.of([(2, 1, ERROR)]), "clamp", 1.0), "clamp"),
    (Intervention(Nodes.of([(2, 1, 5)]), "patch", source=torch.zeros(2, 5, dtype=torch.long)), r"\[2, 5\]"),
])
def test_what_cannot_be_done_is_refused(model: CircuitModel, examples: Examples, one: Intervention, said: str) -> None:
    with pytest.raises(SaescopeError, match=said):
        intervene(model, examples, [one])


def test_missing_counterfactuals_and_gradients_are_refused(model: CircuitModel, examples: Examples) -> None:
    node = Nodes.of(active(model, examples, 0, 1))
    with pytest.raises(SaescopeError, match="counterfactual"):
        intervene(model, tokens(), [Intervention(node, "patch")])
    with pytest.raises(SaescopeError, match="gradient"):
        intervene(model, examples, [Intervention(node)], lambda logits, _: logits.argmax(-1).double())
