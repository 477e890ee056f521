"""With all edges, what the nodes carry; with some, what a run for each node by itself gives."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from analysis.circuits.checks.ablation import Ablation, measure
from analysis.circuits.checks.edge_faithfulness import edge_curve, edge_faithfulness, parents
from analysis.circuits.effects.edges import edge_effects
from analysis.circuits.effects.paths import reach
from analysis.circuits.effects.reference import Means, mean_states, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, SKIP, EdgeEffects, Nodes
from analysis.circuits.tasks.examples import Examples
from tests.analysis.circuits.effects.edge_toys import ATTN, CODER, RESID, UPDATE, every_node, metric, pairs, sample
from tests.training.model.dense import random_sae
from training.model.load import load_model
from training.site import Site, SiteRows

MIDDLE = Site(input="blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def examples() -> Examples:
    return pairs(3, 4)


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    """The residual site in the middle hides what is before it."""
    saes = {RESID: random_sae(0), ATTN: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True),
            MIDDLE: random_sae(4), UPDATE: random_sae(3)}
    return CircuitModel(load_model("native:n_layers=3", dtype="float64"), saes)


@pytest.fixture(scope="module")
def means(model: CircuitModel, examples: Examples) -> Means:
    return mean_states(model, [examples])


def edges_of(nodes: Nodes, source: Any, target: Any) -> EdgeEffects:
    return EdgeEffects(nodes, np.asarray(source), np.asarray(target), sparse.csr_array((3, len(source))))


@pytest.mark.parametrize(
    ("errors", "anywhere"), [("circuit", False), ("kept", False), ("dropped", True), ("kept", True)]
)
def test_all_edges_carry_what_the_nodes_carry(
    model: CircuitModel, examples: Examples, means: Means, errors: Any, anywhere: bool
) -> None:
    nodes = sample(every_node(model, examples), 40)
    assert {ERROR, SKIP} < set(nodes.feature.tolist())
    if anywhere:
        nodes = Nodes.of([(site, ANYWHERE, feature) for site, _, feature in nodes.triples])
    edges = edges_of(nodes, *reach(model, examples).edges(nodes))
    (found,) = edge_faithfulness(model, [examples], metric, [edges], errors=errors, means=means, batch=2)
    (expected,) = measure(model, [examples], metric, [Ablation(nodes, errors=errors)], means=means)
    np.testing.assert_allclose(found.run, expected, rtol=1e-9, atol=1e-11)
    assert np.abs(found.run - found.empty).min() > 1e-4 and np.abs(found.run - found.full).min() > 1e-4


def one_by_one(model: CircuitModel, examples: Examples, reference: dict[Site, State], edges: EdgeEffects) -> Tensor:
    """A whole run for each node, in the order of the sites."""
    nodes, at = edges.nodes, examples.keep.nonzero()
    added: dict[int, Tensor] = {}

    def run(node: int) -> tuple[dict[Site, State], Tensor]:
        mine = [u for u, d in zip(edges.source.tolist(), edges.target.tolist(), strict=True) if d == node]
        seen: dict[Site, State] = {}

        def put(site: Site) -> Any:
            def fn(rows: SiteRows, mask: Tensor) -> Tensor:
                seen[site] = model.state(site, rows)
                return reference[site].target + sum(added[u] for u in mine if model.sites[nodes.site[u]] == site)

            return fn

        with torch.no_grad():
            return seen, model.run(examples.clean, examples.keep, {site: put(site) for site in model.sites})

    for i, (s, position, feature) in enumerate(nodes.triples):
        site = model.sites[s]
        found, to, sae = run(i)[0][site], reference[site], model.saes[site]
        if feature >= 0:
            change = found.code.to_dense()[:, feature] - to.code.to_dense()[:, feature]
            new = change[:, None] * sae.W_dec[feature] / sae.W_dec[feature].norm()
        else:
            new = found.error - to.error if feature == ERROR else found.offset - to.offset
        added[i] = new * ((at[:, 1] == position) | (position == ANYWHERE))[:, None]
    return metric(run(OUTPUT)[1][:, -1], examples)


@pytest.mark.parametrize("reference", ["mean", "counterfactual"])
def test_some_edges_carry_what_a_run_for_each_node_gives(
    model: CircuitModel, examples: Examples, means: Means, reference: Any
) -> None:
    nodes = every_node(model, examples)
    nodes = sample(nodes.take(nodes.position >= 2), 26)
    source, target = reach(model, examples).edges(nodes)
    chosen = np.random.default_rng(0).random(len(source)) < 0.7
    edges = edges_of(nodes, source[chosen], target[chosen])
    (found,) = edge_faithfulness(model, [examples], metric, [edges], reference=reference, means=means)
    expected = one_by_one(model, examples, reference_states(model, examples, reference, means), edges)
    np.testing.assert_allclose(found.run, expected, rtol=1e-9, atol=1e-11)
    (whole,) = measure(model, [examples], metric, [Ablation(nodes)], reference=reference, means=means)
    assert np.abs(found.run - whole).max() > 1e-4 and np.abs(found.run - found.empty).max() > 1e-4


def test_runs_are_as_many_as_sets_of_parents(
    model: CircuitModel, examples: Examples, means: Means, monkeypatch: Any
) -> None:
    nodes = sample(every_node(model, examples), 30)
    edges = edges_of(nodes, *reach(model, examples).edges(nodes))
    ran, run = [], CircuitModel.run
    monkeypatch.setattr(CircuitModel, "run", lambda self, *args: (ran.append(args), run(self, *args))[1])
    edge_faithfulness(model, [examples], metric, [edges], means=means)
    without = len(ran)
    edge_faithfulness(model, [examples], metric, [], means=means)
    assert without - (len(ran) - without) == len(set(parents(edges).values()))
    assert len(set(parents(edges).values())) < len(parents(edges))


def test_a_curve_over_numbers_of_edges(model: CircuitModel, examples: Examples, means: Means) -> None:
    nodes = sample(every_node(model, examples), 30)
    edges = edge_effects(model, examples, metric, nodes, reference="mean", means=means)
    curve = edge_curve(model, [examples], metric, edges, [20, 0, 10_000], means=means, n_bootstraps=20)
    assert curve.n_edges == (0, 20, len(edges)) and curve.n_nodes[0] == 0 < curve.n_nodes[1] < curve.n_nodes[2]
    assert curve.values[0].value == pytest.approx(0, abs=1e-9)
    some = edges.largest(20)
    assert np.abs(some.mean).min() == np.sort(np.abs(edges.mean))[-20]
    (found,) = edge_faithfulness(model, [examples], metric, [some], means=means)
    assert curve.values[1].value == pytest.approx(found.value) and curve.plain()["n_edges"] == [0, 20, len(edges)]
    cut = some.take(some.target != OUTPUT)
    (nothing,) = edge_faithfulness(model, [examples], metric, [cut], means=means)
    np.testing.assert_allclose(nothing.run, nothing.empty, atol=1e-12)
