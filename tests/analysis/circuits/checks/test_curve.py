"""Curves, areas, baselines and specificity: known answers, on a planted linear case and on a small model."""

import json

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from analysis.circuits.checks.ablation import ALL_FEATURES, NOTHING_KEPT, Ablation
from analysis.circuits.checks.baselines import active_features, coordinate_curve, random_circuits, random_curve
from analysis.circuits.checks.curve import Curve, Series, area, by_effect, curves, sizes, spread, summed
from analysis.circuits.checks.faithfulness import Faithfulness, faithfulness
from analysis.circuits.checks.specificity import Behaviour, specificity
from analysis.circuits.coordinates import coordinates, mlp_activations, own_coordinates
from analysis.circuits.effects.reference import Means, mean_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.errors import SaescopeError
from tests.training.model.dense import CODER, D, N, random_sae
from training.model.load import load_model
from training.site import Site

LAST = Site(input="blocks.2.hook_resid_post")
N_CTX = 6


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    """Two sites in parallel streams and the one that reads both."""
    saes = {
        Site(input="blocks.1.hook_mlp_out"): random_sae(0), CODER: random_sae(1, kind="jumprelu", skip=True),
        LAST: random_sae(2),
    }
    return CircuitModel(load_model("native:n_layers=3", dtype="float64"), saes)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return some_examples(N_CTX)


@pytest.fixture(scope="module")
def means(model: CircuitModel, examples: Examples) -> Means:
    return mean_states(model, [examples])


def some_examples(n_ctx: int, n: int = 6, seed: int = 0) -> Examples:
    tokens = torch.randint(3, 259, (2, n, n_ctx), generator=torch.Generator().manual_seed(seed))
    keep = torch.ones(n, n_ctx, dtype=torch.bool)
    keep[:, 0] = False
    none = torch.zeros(n, 0, dtype=torch.long)
    return Examples(tokens[0], tokens[1], torch.arange(n)[:, None], none, keep)


def metric(logits: Tensor, examples: Examples) -> Tensor:
    return logits.log_softmax(-1)[:, :7] @ torch.linspace(-1, 1, 7, dtype=logits.dtype)


def effects(nodes: Nodes, values: np.ndarray) -> NodeEffects:
    return NodeEffects(nodes, sparse.csr_array(values))


def simple(model: CircuitModel, train: Examples) -> NodeEffects:
    """A cheap stand-in for an estimator: how much each active feature adds to the stream, example by example."""
    state = model.states(train.clean, train.keep)[0][model.sites[0]]
    dense = state.code.to_dense().unflatten(0, (len(train), -1)).flatten(1)
    nodes = Nodes.of([(0, p, f) for p in range(1, train.n_ctx) for f in range(state.code.d_sae)])
    return effects(nodes, dense.numpy())


def test_sizes_are_even_on_a_logarithmic_axis() -> None:
    assert sizes(100, 4) == [1, 2, 3, 6, 10, 18, 32, 56, 100]
    assert sizes(1) == [1] and sizes(0) == [1]


def test_the_area_is_the_mean_height_over_log_n() -> None:
    assert area([1, 10, 100], np.array([[0.0, 1.0, 1.0]])) == pytest.approx([0.75])
    assert area([1, 100], np.array([[0.2, 0.2], [0.0, 1.0]])) == pytest.approx([0.2, 0.5])
    assert area([0, 1, 10], np.array([[9.0, 0.5, 0.5]])) == pytest.approx([0.5])
    assert area([7], np.array([[0.3]])) == pytest.approx([0.3])


def test_faithfulness_is_a_ratio_of_means_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    empty, full = rng.normal(0, 1, 400), rng.normal(3, 1, 400)
    found = Faithfulness(empty + 0.5 * (full - empty) + rng.normal(0, 0.3, 400), empty, full)
    interval = found.interval(n_bootstraps=2000)
    assert interval.value == found.value == pytest.approx((found.run - empty).sum() / (full - empty).sum(), rel=1e-12)
    assert interval.low is not None and interval.high is not None and interval.low < interval.value < interval.high
    # the delta method: the standard deviation of run − empty − value · (full − empty), over √n and the mean
    error = np.std(found.run - empty - found.value * (full - empty)) / 20 / (full - empty).mean()
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    assert Faithfulness(full, empty, full).by_example == pytest.approx(np.ones(400))
    means = found.means
    assert found.value == pytest.approx(
        (means["metric"] - means["metric_empty"]) / (means["metric_model"] - means["metric_empty"])
    )


def test_circuits_are_the_largest_effects_each_inside_the_next() -> None:
    nodes = Nodes.of([(0, 1, ERROR), (0, 1, 3), (0, 2, 4), (1, 1, SKIP), (1, 1, 5)])
    some = effects(nodes, np.array([[-9.0, 1.0, -2.0, 0.5, 0.0]]))
    assert [c.triples for c in by_effect(some, [1, 3, 5])] == [
        [(0, 1, ERROR)], [(0, 1, ERROR), (0, 1, 3), (0, 2, 4)], [(0, 1, ERROR), (0, 1, 3), (0, 2, 4), (1, 1, SKIP)],
    ]
    assert [c.triples for c in by_effect(some, [1, 2], "dropped")] == [[(0, 2, 4)], [(0, 1, 3), (0, 2, 4)]]


def test_a_linear_readout_has_the_faithfulness_that_was_planted(model: CircuitModel, means: Means) -> None:
    """At the last site the metric is a sum over nodes where the readout is linear: shares add up, and are monotone."""
    examples = some_examples(N_CTX)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen: list[Tensor] = []

    def linear(logits: Tensor, part: Examples) -> Tensor:  # reads the stream instead of the logits
        return seen.pop()[:, -1] @ direction

    last = CircuitModel(model.model, {LAST: model.saes[LAST]})
    mine = Means({LAST: means.by_site[LAST]}, means.positional)
    state = last.states(examples.clean, examples.keep)[0][LAST].take(torch.arange(6) * 5 + 4)
    ref = mine.of(examples)[LAST].take(torch.arange(6) * 5 + 4)
    sae = last.saes[LAST]
    unit = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    moves = (state.code.to_dense() - ref.code.to_dense()) * (unit @ direction)
    features = moves.mean(0).nonzero()[:, 0].tolist()
    alone = [(N_CTX - 1, f) for f in (*features, ERROR)] + [(N_CTX - 2, features[0])]
    # behind the ablation's own splices, which are opened last
    with model.model.splice("ln_final.hook_in", lambda acts: seen.append(acts) or acts):
        found = faithfulness(
            last, [examples], linear, [Ablation(Nodes.of([(0, p, f)])) for p, f in alone], means=mine
        )
    total = float(((state.target - ref.target) @ direction).mean())
    shares = [float(moves.mean(0)[f]) / total for f in features]
    assert [one.value for one in found[:-2]] == pytest.approx(shares, rel=1e-8)
    assert found[-2].value == pytest.approx(float(((state.error - ref.error) @ direction).mean()) / total, rel=1e-8)
    assert found[-1].value == pytest.approx(0, abs=1e-12)
    assert sum(one.value for one in found[:-1]) == pytest.approx(1, rel=1e-8)


def test_curves_end_at_the_model_and_completeness_falls(model: CircuitModel, examples: Examples, means: Means) -> None:
    """With every node in it the circuit is the model, and its complement is nothing."""
    whole = Nodes.of([(s, p, f) for s in range(3) for p in range(N_CTX) for f in range(SKIP, N)])
    some = [Nodes.empty(), whole.take(np.arange(40)), whole]
    kept, left, free = curves(
        model, [examples], metric,
        [Series("circuit", some), Series("rest", some, moved="inside"), Series("kept", some, errors="kept")],
        means=means, n_bootstraps=50,
    )
    assert kept.values[0].value == 0 and kept.values[-1].value == pytest.approx(1, rel=1e-9)
    assert left.values[0].value == 1 and left.values[-1].value == pytest.approx(0, abs=1e-9)
    assert kept.n_nodes == (0, 40, len(whole)) and kept.n_summed[-1] == len(summed(whole))
    assert free.values[0].value != pytest.approx(0, abs=1e-3) and free.values[-1].value == pytest.approx(1, rel=1e-9)
    assert kept.reaches(0.99) == len(whole) and kept.reaches(2.0) is None
    assert Curve.read(json.loads(json.dumps(kept.plain()))) == kept


def test_random_circuits_are_nested_draws_of_active_features(
    model: CircuitModel, examples: Examples, means: Means
) -> None:
    active = active_features(model, [examples], batch=4)
    codes = [state.code for state in model.states(examples.clean, examples.keep)[0].values()]
    expected = {(s, int(r) % 5 + 1, int(f)) for s, code in enumerate(codes)
                for r, f in zip(code.rows(), code.feature, strict=True)}
    assert active.triples == sorted(expected)
    assert active_features(model, [examples], positions=False).triples == summed(active).triples
    few, more = random_circuits(active, [5, 20], 1)
    assert set(few.triples) < set(more.triples) < expected and len(few) == 5 and len(more) == 20
    assert few.triples != random_circuits(active, [5], 2)[0].triples
    found = random_curve(model, [examples], metric, [5, 20], active=active, n_random=3, means=means)
    each = [curves(model, [examples], metric, [Series("", random_circuits(active, [5, 20], i))], means=means)[0]
            for i in range(3)]
    values = [one.values[1].value for one in each]
    assert (found.values[1].low, found.values[1].high) == (min(values), max(values))
    assert found.values[1].value == pytest.approx(np.mean(values)) and min(values) < max(values)
    assert spread("x", each).area.value == pytest.approx(np.mean([one.area.value for one in each]))


def test_all_coordinates_are_the_model(model: CircuitModel, examples: Examples) -> None:
    """For MLP activations behind the first site, and for the sites' own, an update's among them."""
    neurons, own = mlp_activations(model), own_coordinates(model)
    assert [site.input for site in neurons.sites] == ["blocks.2.mlp.hook_post"]
    assert {sae.d_sae for sae in neurons.saes.values()} == {4 * D}
    update = Site(input="blocks.1.hook_resid_pre", target="blocks.1.hook_resid_post", update=True)
    updates = own_coordinates(CircuitModel(model.model, {update: random_sae(0)}))
    for one in (neurons, own, updates):
        means = mean_states(one, [examples])
        found = faithfulness(one, [examples], metric, [NOTHING_KEPT, ALL_FEATURES], means=means)
        assert found[0].value == 0 and found[1].value == pytest.approx(1, rel=1e-9)
        assert np.abs(found[0].empty - found[0].full).min() > 1e-4
        state = one.states(examples.clean, examples.keep)[0][one.sites[0]]
        assert not state.error.any() and (state.code.value < 0).any()
        torch.testing.assert_close(state.code.to_dense(), state.target)
    without = CircuitModel(model.model, {LAST: model.saes[LAST]})
    with pytest.raises(SaescopeError):
        mlp_activations(without)


def test_coordinates_are_chosen_on_training_examples(model: CircuitModel, examples: Examples) -> None:
    """All neurons of a site are the model; a few are what the estimator put first on the training examples."""
    neurons = coordinates(model.model, [Site(input="blocks.2.mlp.hook_post")])
    train, test = some_examples(N_CTX, seed=1, n=3), some_examples(N_CTX, seed=2)
    given: list[Means] = []
    found = coordinate_curve(
        "MLP activations", neurons, [train], [test], metric, [1, 30, 999], n_bootstraps=0,
        estimate=lambda m, means: given.append(means) or simple(m, train),
    )
    assert found.n_nodes == (1, 30, 5 * 4 * D) and found.values[-1].value == pytest.approx(1, rel=1e-9)
    chosen = by_effect(simple(neurons, train), [30])
    means = mean_states(neurons, [train])
    torch.testing.assert_close(given[0].by_site[neurons.sites[0]].target, means.by_site[neurons.sites[0]].target)
    again = curves(neurons, [test], metric, [Series("", chosen)], means=means)
    assert again[0].values[0].value == pytest.approx(found.values[1].value, rel=1e-12) and len(chosen[0]) == 30


def test_each_circuit_is_run_on_each_task(model: CircuitModel, examples: Examples, means: Means) -> None:
    long = some_examples(8, seed=3)
    tasks = {
        "a": Behaviour([examples], metric, means),
        "b": Behaviour([some_examples(N_CTX, seed=4)], metric, mean_states(model, [some_examples(N_CTX, seed=4)])),
        "long": Behaviour([long], metric, mean_states(model, [long])),
    }
    active = active_features(model, [examples])
    circuits = {"a": active.take(np.arange(0, len(active), 3)), "long": summed(active)}
    cells = {(c.circuit, c.task, c.positions): c.value for c in specificity(model, circuits, tasks, n_bootstraps=20)}
    assert set(cells) == {
        ("a", "a", True), ("a", "a", False), ("a", "b", True), ("a", "b", False), ("a", "long", False),
        ("long", "a", False), ("long", "b", False), ("long", "long", False),
    }
    alone = faithfulness(model, tasks["b"].groups, metric, [Ablation(circuits["a"])], means=tasks["b"].means)[0]
    assert cells["a", "b", True].value == pytest.approx(alone.value)
    assert cells["a", "a", True].value != pytest.approx(cells["a", "a", False].value)
    assert (circuits["long"].position == ANYWHERE).all() and N == 96
