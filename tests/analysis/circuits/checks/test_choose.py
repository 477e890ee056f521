"""Effects within ablated runs against finite differences and sums that are known, and circuits pruned by them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from analysis.circuits.checks.ablation import (
    NOTHING_KEPT,
    PLAIN,
    Ablation,
    Shares,
    ablated,
    measure,
    shares_of,
)
from analysis.circuits.checks.choose import effects_within, gained, joint_effects, pruned
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.effects.reference import Means, mean_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, NodeEffects, Nodes
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
    found = effects_within(model, [examples], metric, partial(shares_of, model, PLAIN), means=means, batch=3)
    expected = node_effects(model, examples, metric, reference="mean", means=means, method="attribution")
    assert found.nodes.triples == expected.nodes.triples
    np.testing.assert_allclose(found.values.toarray(), expected.values.toarray(), rtol=1e-9, atol=1e-12)


def test_effects_are_slopes_in_the_share_of_a_node(model: CircuitModel, examples: Examples, means: Means) -> None:
    """At a random point between all and nothing, by central differences; errors and skip paths are among the nodes."""
    generator = torch.Generator().manual_seed(3)
    point = {site: torch.rand(t.shape, generator=generator, dtype=t.dtype)
             for site, t in shares_of(model, PLAIN, N_CTX).items()}
    found = effects_within(model, [examples], metric, lambda n_ctx: point, means=means)
    order = np.sort(np.argsort(-np.abs(found.mean))[:12])
    few = found.nodes.take(order)
    again = effects_within(model, [examples], metric, lambda n_ctx: point, nodes=few, means=means)
    assert again.nodes.triples == few.triples
    np.testing.assert_allclose(again.mean, found.mean[order], rtol=1e-10)
    assert {ERROR, SKIP} <= set(few.feature.tolist()) and np.abs(again.mean).min() > 1e-7
    for (site, position, feature), effect in zip(few.triples, again.mean, strict=True):
        moved = []
        for step in (-1e-5, 1e-5):
            table = point[model.sites[site]].clone()
            table[position, feature] += step
            moved.append(run(model, examples, {**point, model.sites[site]: table}, means))
        assert -(moved[1] - moved[0]) / 2e-5 == pytest.approx(effect, rel=2e-3, abs=1e-8)


def test_joint_effects_add_up_to_what_all_nodes_carry(model: CircuitModel, examples: Examples, means: Means) -> None:
    found = joint_effects(model, [examples], metric, means=means, n_steps=8)
    empty, full = measure(model, [examples], metric, [NOTHING_KEPT, PLAIN], means=means)
    np.testing.assert_allclose(found.values.sum(axis=1), empty - full, rtol=1e-2)
    few = found.nodes.take(np.arange(0, len(found.nodes), 5))
    some = joint_effects(model, [examples], metric, means=means, n_steps=8, nodes=few)
    np.testing.assert_allclose(some.mean, found.mean[::5], rtol=1e-10)


@pytest.mark.parametrize("by", ["size", "distance"])
def test_pruning_drops_the_least_within_what_is_left(
    model: CircuitModel, examples: Examples, means: Means, by: Any
) -> None:
    options = {"means": means, "reference": "mean"}
    start = node_effects(model, examples, metric, reference="mean", means=means, method="attribution").largest(40).nodes
    found = pruned(model, [examples], metric, [5, 20, 99], start=start, by=by, shrink=0.75, **options)
    assert [len(nodes) for nodes in found] == [5, 20, 40] and found[2].triples == start.triples
    left = start.triples
    for n in (30, 22, 20, 15, 11, 8, 6, 5):
        nodes = Nodes.of(left)
        within = effects_within(
            model, [examples], metric, partial(shares_of, model, Ablation(nodes)), nodes=nodes, **options
        )
        worth = np.abs(within.mean)
        if by == "distance":
            full, mine = measure(model, [examples], metric, [PLAIN, Ablation(nodes)], means=means)
            off, moved = (mine - full)[:, None], within.values.toarray()
            worth = ((off + moved) ** 2 - off**2).mean(axis=0)
        by_node = dict(zip(within.nodes.triples, worth, strict=True))
        left = sorted(left, key=lambda node, by_node=by_node: -by_node[node])[:n]
        if n == 20:
            assert sorted(left) == found[1].triples
    assert sorted(left) == found[0].triples


def test_nodes_at_all_positions_are_pruned_as_one(model: CircuitModel, examples: Examples, means: Means) -> None:
    start = node_effects(model, examples, metric, reference="mean", means=means, method="attribution")
    nodes = start.over_positions().largest(20).nodes
    (found,) = pruned(model, [examples], metric, [12], start=nodes, by="size", shrink=0.1, means=means)
    within = effects_within(
        model, [examples], metric, partial(shares_of, model, Ablation(nodes)), nodes=nodes, means=means
    )
    assert (found.position == ANYWHERE).all() and found.triples == within.over_positions().largest(12).nodes.triples



def test_a_node_is_worth_what_the_circuit_is_further_off_without_it() -> None:
    """Off by 2 below the model, a node that supports is worth something, and one that opposes less than nothing."""
    found = NodeEffects(Nodes.of([(0, 1, f) for f in range(4)]), sparse.csr_array(np.array([[-2.0, 2, -0.1, -6]] * 3)))
    # without the node the circuit is off by 4, 0, 2.1, 8
    assert gained(found, np.full(3, -2.0)) == pytest.approx([12, -4, 0.41, 60])
    assert gained(found, np.zeros(3)) == pytest.approx([4, 4, 0.01, 36])
