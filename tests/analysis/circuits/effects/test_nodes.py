"""Node effects against a transformer written out densely, edits of a spliced model, and a model that is linear."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.circuits.effects.completeness import completeness
from analysis.circuits.effects.exact import exact_effects
from analysis.circuits.effects.nodes import Method, node_effects
from analysis.circuits.effects.reference import Reference, mean_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, SKIP, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, value
from analysis.circuits.tasks.metrics import kl
from sae.errors import SaescopeError
from tests.analysis.circuits.effects.cases import SIGNED, circuit_model, difference, log_probability, pairs, saes
from tests.training.model.dense import CODER, PLAIN, UPDATE, Dense, forward
from training.model.edits import Edit
from training.model.frozen import HELD
from training.model.load import load_model
from training.model.splice import SplicedModel
from training.site import Site

WIDE: dict[str, float] = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    return circuit_model(load_model("native:n_layers=3", dtype="float64"))


@pytest.fixture(scope="module")
def exact(model: CircuitModel) -> NodeEffects:
    return exact_effects(model, pairs(), difference)


def entries(effects: NodeEffects, site: int) -> dict[tuple[int, int, int], float]:
    """(example, position, feature) → effect, of what is stored."""
    coo = effects.values.tocoo()
    nodes = effects.nodes
    return {
        (int(e), int(nodes.position[c]), int(nodes.feature[c])): float(v)
        for e, c, v in zip(*coo.coords, coo.data, strict=True) if nodes.site[c] == site
    }


def test_attribution_is_the_gradient_of_a_dense_model(model: CircuitModel) -> None:
    """Three sites with every feature written out; (reference − clean) · ∂metric of values, errors and skip paths."""
    examples = pairs()
    three = CircuitModel(model.model, {site: sae for site, sae in saes().items() if site in (PLAIN, UPDATE, CODER)})
    found = node_effects(three, examples, log_probability, method="attribution")
    clean, corrupt = (Dense(dict(three.saes), examples.keep, "model") for _ in range(2))
    total = log_probability(forward(three.model, examples.clean, clean)[:, -1], examples).sum()
    forward(three.model, examples.corrupt, corrupt)
    for index, site in enumerate(three.sites):
        by_acts, by_error = torch.autograd.grad(total, [clean.acts[site], clean.error[site]], retain_graph=True)
        acts, other = clean.acts[site].detach(), corrupt.acts[site].detach()
        features = by_acts * (other - acts)
        errors = (by_error * (corrupt.error[site] - clean.error[site])).sum(-1).detach()
        expected = {
            (e, t, f): float(features[e, t, f])
            for e, t, f in ((acts != 0) | (other != 0)).nonzero().tolist() if examples.keep[e, t]
        }
        expected |= {(e, t, ERROR): float(errors[e, t]) for e, t in examples.keep.nonzero().tolist()}
        if site == CODER:
            skip = (by_error * (bypassed(corrupt, site) - bypassed(clean, site))).sum(-1)
            expected |= {(e, t, SKIP): float(skip[e, t]) for e, t in examples.keep.nonzero().tolist()}
        ours = entries(found, index)
        assert ours.keys() == expected.keys() and len(ours) > 100
        torch.testing.assert_close(
            torch.tensor([ours[key] for key in expected]), torch.tensor(list(expected.values())), rtol=1e-5, atol=1e-8
        )


def bypassed(dense: Dense, site: Site) -> Tensor:
    x = dense.x[site].detach()
    return dense.saes[site].bypass(x.flatten(0, 1)).view_as(x)


def test_exact_effects_are_single_edits(model: CircuitModel, exact: NodeEffects) -> None:
    """Features by edits of a spliced model, errors and skip paths through its errors; one run each."""
    examples, spliced = pairs().take(slice(1, 3)), SplicedModel(model.model, model.saes)
    clean = spliced.run(examples.clean, keep=examples.keep)
    other = spliced.run(examples.corrupt, keep=examples.keep)
    base = value(difference, clean.logits, examples)
    kinds = [exact.nodes.feature >= 0, exact.nodes.feature == ERROR, exact.nodes.feature == SKIP]
    effects = exact.take(np.sort(np.concatenate([np.flatnonzero(k)[::n] for k, n in zip(kinds, (50, 4, 2), strict=True)])))
    assert min(int((effects.nodes.feature == kind).sum()) for kind in (ERROR, SKIP)) >= 5 and len(effects.nodes) > 30
    for column, (index, position, feature) in enumerate(effects.nodes.triples):
        site, where = model.sites[index], torch.zeros_like(examples.keep)
        where[:, position] = examples.keep[:, position]
        with torch.no_grad():
            if feature >= 0:
                edit = Edit(site, [feature], other.codes[site], positions=where)
                run = spliced.run(examples.clean, keep=examples.keep, edits=[edit])
            else:
                a, b = (vector(model, part, site, feature) for part in (clean, other))
                step = torch.where(where[examples.keep][:, None], b - a, 0)
                run = spliced.run(examples.clean, keep=examples.keep, errors={site: clean.errors[site] + step})
        moved = value(difference, run.logits, examples) - base
        np.testing.assert_allclose(effects.values[1:3, [column]].toarray()[:, 0], moved.detach().numpy(), atol=1e-9)


def vector(model: CircuitModel, run, site: Site, kind: int) -> Tensor:
    return run.errors[site] if kind == ERROR else model.saes[site].encode(run.at[site].x.detach()).offset


@pytest.mark.parametrize("reference", ["counterfactual", "mean", "zero"])
def test_on_a_linear_model_all_estimators_are_exact(model: CircuitModel, reference: Reference) -> None:
    examples = pairs()
    means = mean_states(model, [examples])
    kept = {"reference": reference, "means": means, "freeze": HELD}
    some = node_effects(model, examples, difference, method="attribution", **kept).largest(60).nodes
    true = exact_effects(model, examples, difference, nodes=some, **kept)
    assert len(some) == 60 and float(np.abs(true.mean).min()) > 1e-4
    for method in ("attribution", "ig"):
        found = node_effects(model, examples, difference, method=method, n_steps=3, **kept)
        gap = completeness(model, examples, difference, found, **kept)
        assert float(gap.by_example.max()) < 1e-9
        ours = found.take(np.isin(keys(found.nodes), keys(some)))
        assert ours.nodes.triples == some.triples
        np.testing.assert_allclose(ours.values.toarray(), true.values.toarray(), atol=1e-6)


def keys(nodes: Nodes) -> np.ndarray:
    return (nodes.site * 1000 + nodes.position) * 1000 + nodes.feature


@pytest.mark.parametrize("method", ["attribution", "relp", "ig"])
def test_batches_change_nothing(model: CircuitModel, method: Method) -> None:
    """Nor does a single example per pass, or examples in another order; every node has its entry."""
    told: list[int] = []
    whole = node_effects(model, pairs(), difference, method=method, n_steps=4)
    parts = node_effects(model, pairs(), difference, method=method, n_steps=4, batch=3, progress=told.append)
    assert whole.nodes.triples == parts.nodes.triples and sum(told) == 4 * 5
    np.testing.assert_allclose(whole.values.toarray(), parts.values.toarray(), **WIDE)
    single = node_effects(model, pairs().take(torch.tensor([2])), difference, method=method, n_steps=4)
    assert entries(single, 3) == pytest.approx({(0, *k[1:]): v for k, v in entries(whole, 3).items() if k[0] == 2})
    n_rows = int(pairs().keep.sum())
    for index, site in enumerate(model.sites):
        mine = whole.nodes.site == index
        for kind, there in ((ERROR, True), (SKIP, model.saes[site].has_offsets)):
            assert whole.values[:, mine & (whole.nodes.feature == kind)].nnz == n_rows * there


def test_exact_effects_of_chosen_nodes_in_any_batch(model: CircuitModel, exact: NodeEffects) -> None:
    chosen = exact.take(np.arange(3, len(exact.nodes), 30))
    for batch in (2, 3, 50):
        again = exact_effects(model, pairs(), difference, nodes=chosen.nodes, batch=batch)
        np.testing.assert_allclose(again.values.toarray(), chosen.values.toarray(), **WIDE)
    assert model.saes[SIGNED].encode(torch.randn(40, 32).double()).value.lt(0).any()


def test_the_reference_is_the_corrupt_prompt(model: CircuitModel) -> None:
    """Moved as a whole, the last site of a model carries all of the change at the last position."""
    last = Site(input="blocks.2.hook_resid_post")
    one = CircuitModel(model.model, {last: saes()[PLAIN]})
    examples = pairs()
    found = node_effects(one, examples, difference, method="ig", n_steps=200)
    clean, corrupt = (difference(model.model.logits(t)[:, -1], examples) for t in (examples.clean, examples.corrupt))
    np.testing.assert_allclose(found.values.sum(axis=1), (corrupt - clean).numpy(), rtol=1e-3)
    assert {t for _, t, _ in entries(found.take(np.abs(found.mean) > 1e-12), 0)} == {6}


def test_a_model_in_half_precision_gives_nearly_the_same() -> None:
    wide, narrow = (load_model("native:n_layers=2", dtype=dtype) for dtype in ("float32", "bfloat16"))
    sites = {site: sae.float() for site, sae in saes().items() if site in (PLAIN, SIGNED)}
    for method in ("attribution", "relp", "ig", "exact"):
        a, b = (
            node_effects(CircuitModel(model, sites), pairs(), difference, method=method, n_steps=4).over_positions()
            for model in (wide, narrow)
        )
        ours, theirs = (
            e.take(np.isin(keys(e.nodes), np.intersect1d(keys(a.nodes), keys(b.nodes)))) for e in (a, b)
        )
        assert len(ours.nodes) > 50
        assert np.corrcoef(ours.mean, theirs.mean)[0, 1] > 0.9, method


def test_a_metric_without_a_gradient_is_refused(model: CircuitModel) -> None:
    examples = pairs()
    logits = model.model.logits(examples.clean)

    def is_right(logits: Tensor, examples: Examples) -> Tensor:
        return (logits.argmax(-1) == examples.right[:, 0]).float()

    with_reference = replace(examples, reference=logits[:, -1])
    for method in ("attribution", "relp"):
        with pytest.raises(SaescopeError, match="ig"):
            node_effects(model, with_reference, kl, method=method)
    assert float(np.abs(node_effects(model, with_reference, kl, n_steps=2).mean).max()) > 1e-4
    for method in ("attribution", "ig"):
        with pytest.raises(SaescopeError, match="gradient"):
            node_effects(model, examples, is_right, method=method)
    with pytest.raises(SaescopeError, match="single prompts"):
        node_effects(model, replace(examples, corrupt=None), difference)
