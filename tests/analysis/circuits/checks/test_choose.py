"""Effects within ablated runs against finite differences and sums that are known, and circuits pruned by them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.circuits.checks.ablation import (
    PLAIN,
    Ablation,
    Shares,
    ablated,
    measure,
    shares_of,
)
from analysis.circuits.checks.choose import effects_within, nearest, pruned
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.effects.reference import Means, mean_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP
from analysis.circuits.tasks.examples import Examples
from tests.training.model.dense import CODER, UPDATE, random_sae
from tests.training.model.dense import PLAIN as RESID
from training.model.load import load_model

N_CTX = 6


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    saes = {RESID: random_sae(0), UPDATE: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True)}
    return CircuitModel(load_model("native:n_layers=3", dtype="float64"), saes)


@pytest.fixture(scope="module")
def examples() -> Examples:
    tokens = torch.randint(3, 259, (2, 4, N_CTX), generator=torch.Generator().manual_seed(0))
    keep = torch.ones(4, N_CTX, dtype=torch.bool)
    keep[:, 0] = False
    none = torch.zeros(4, 0, dtype=torch.long)
    return Examples(tokens[0], tokens[1], torch.arange(4)[:, None], none, keep)


@pytest.fixture(scope="module")
def means(model: CircuitModel, examples: Examples) -> Means:
    return mean_states(model, [examples])


def metric(logits: Tensor, examples: Examples) -> Tensor:
    return logits.log_softmax(-1)[:, :7] @ torch.linspace(-1, 1, 7, dtype=logits.dtype)


def run(model: CircuitModel, examples: Examples, shares: Shares, means: Means) -> float:
    at = ablated(model, examples, shares, means.of(examples))
    with torch.no_grad():
        return float(metric(model.run(examples.clean, examples.keep, at)[:, -1], examples).mean())


def test_in_the_whole_model_effects_are_attribution_patching(
    model: CircuitModel, examples: Examples, means: Means
) -> None:
    found = effects_within(model, [examples], metric, PLAIN, means=means, batch=3)
    expected = node_effects(model, examples, metric, reference="mean", means=means, method="attribution")
    assert found.nodes.triples == expected.nodes.triples
    np.testing.assert_allclose(found.values.toarray(), expected.values.toarray(), rtol=1e-9, atol=1e-12)


def test_effects_are_slopes_in_the_share_of_a_node(model: CircuitModel, examples: Examples, means: Means) -> None:
    """In a circuit of half the nodes, of nodes in it and outside, by central differences."""
    every = node_effects(model, examples, metric, reference="mean", means=means, method="attribution").nodes
    half = Ablation(every.take(np.random.default_rng(0).random(len(every)) < 0.5))
    point = shares_of(model, half, N_CTX)
    found = effects_within(model, [examples], metric, half, means=means)
    few = found.nodes.take(np.sort(np.argsort(-np.abs(found.mean))[:14]))
    again = effects_within(model, [examples], metric, half, nodes=few, means=means)
    assert again.nodes.triples == few.triples
    np.testing.assert_allclose(again.mean, found.mean[np.sort(np.argsort(-np.abs(found.mean))[:14])], rtol=1e-10)
    shares = []
    for (site, position, feature), effect in zip(few.triples, again.mean, strict=True):
        shares.append(float(point[model.sites[site]][position, feature]))
        moved = []
        for step in (-1e-5, 1e-5):
            table = point[model.sites[site]].clone()
            table[position, feature] += step
            moved.append(run(model, examples, {**point, model.sites[site]: table}, means))
        assert -(moved[1] - moved[0]) / 2e-5 == pytest.approx(effect, rel=2e-3, abs=1e-8)
    assert set(shares) == {0.0, 1.0} and {ERROR, SKIP} <= set(few.feature.tolist()) and np.abs(again.mean).min() > 1e-3


@pytest.mark.parametrize("by", ["size", "distance"])
def test_pruning_drops_the_least_within_what_is_left(
    model: CircuitModel, examples: Examples, means: Means, by: Any
) -> None:
    options = {"means": means, "reference": "mean"}
    start = node_effects(model, examples, metric, reference="mean", means=means, method="attribution").largest(40).nodes
    found = pruned(model, [examples], metric, [5, 20, 99], start=start, by=by, shrink=0.75, **options)
    assert [len(nodes) for nodes in found] == [5, 20, 40] and found[2].triples == start.triples
    (full,) = measure(model, [examples], metric, [PLAIN], means=means)
    left = start
    for n in (30, 22, 20, 15, 11, 8, 6, 5):
        within = effects_within(
            model, [examples], metric, Ablation(left), nodes=left, **options
        )
        kept = [triple for triple in left.triples if triple in within.nodes.triples]
        assert kept == within.nodes.triples
        moves = within.values.toarray()
        chosen = np.argsort(-np.abs(moves.mean(axis=0)), kind="stable")[:n]
        if by == "distance":
            (mine,) = measure(model, [examples], metric, [Ablation(left)], means=means)
            chosen = nearest(moves, mine - full, n)
        left = within.nodes.take(np.sort(chosen))
        if n in (20, 5):
            assert left.triples == found[int(n == 20)].triples


def test_nodes_that_cancel_go_together() -> None:
    """Off by nothing: the small one goes, then the pair; off by 2 above the model, what supports it by 2 goes first."""
    effects = np.array([[-2.0, 2, -0.1, -6]] * 3)
    assert [nearest(effects, np.zeros(3), n).tolist() for n in (3, 1, 0)] == [[0, 1, 3], [3], []]
    assert nearest(effects, np.full(3, 2.0), 3).tolist() == [1, 2, 3]
    # the same by trying all sets, where going one by one finds the best
    rng = np.random.default_rng(0)
    effects, off = rng.normal(0, 1, (5, 8)), rng.normal(0, 3, 5)
    (one,) = set(range(8)) - set(nearest(effects, off, 7).tolist())
    assert one == int(np.argmin(np.square(off[:, None] + effects).sum(axis=0)))


def test_nodes_at_all_positions_are_pruned_as_one(model: CircuitModel, examples: Examples, means: Means) -> None:
    start = node_effects(model, examples, metric, reference="mean", means=means, method="attribution")
    nodes = start.over_positions().largest(20).nodes
    (found,) = pruned(model, [examples], metric, [12], start=nodes, by="size", shrink=0.1, means=means)
    within = effects_within(
        model, [examples], metric, Ablation(nodes), nodes=nodes, means=means
    )
    assert (found.position == ANYWHERE).all() and found.triples == within.over_positions().largest(12).nodes.triples
