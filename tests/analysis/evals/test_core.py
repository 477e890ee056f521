"""The core figures of dictionaries made by hand, against their definitions in dense fp64."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from analysis.evals.common.context import TokenCosts
from analysis.evals.common.result import Units
from analysis.evals.metrics import core
from analysis.mdl.description_length import count_levels, entropy, quantise
from sae.code import SparseCode
from tests.analysis.evals.rows import HandContext, made_sae, rows_of

X = torch.randn(600, 8, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.3, 2, 8) + 3


@pytest.mark.parametrize("variant", ["topk", "abstopk", "batchtopk", "relu"])
def test_figures_are_their_definitions(variant: str) -> None:
    sae, rows = made_sae(variant), rows_of(X)
    found = core.run(HandContext(sae, rows), sae, core.Settings())
    dense = sae.encode(X).to_dense().double()
    t, t_hat, mean = X.double(), sae.decode(sae.encode(X)).double(), sae.target.mean.double()
    error, spread = (t - t_hat).square().sum(1), (t - t.mean(0)).square().sum(1)

    def value(group: str, name: str) -> float:
        metric = found.metrics[group][name]
        assert metric.value is not None
        return metric.value

    assert value("reconstruction", "fve") == pytest.approx(float(1 - error.sum() / spread.sum()), rel=1e-5)
    assert value("reconstruction", "mse") == pytest.approx(float(error.mean()), rel=1e-5)
    turn = torch.nn.functional.cosine_similarity(t - mean, t_hat - mean)
    assert value("reconstruction", "cosine") == pytest.approx(float(turn.mean()), rel=1e-5)
    ratio = (t_hat - mean).norm(dim=1).sum() / (t - mean).norm(dim=1).sum()
    assert value("reconstruction", "norm_ratio") == pytest.approx(float(ratio), rel=1e-5)
    for name, active in (("l0", dense != 0), ("l0_positive", dense > 0), ("l0_negative", dense < 0)):
        assert value("sparsity", name) == pytest.approx(float(active.double().sum(1).mean()))
    density = (dense != 0).double().mean(0)
    for name, share in (("dead", density == 0), ("dense", density > 0.1), ("dense_1", density > 0.01)):
        assert value("sparsity", name) == pytest.approx(float(share.double().mean()))
    assert np.array_equal(found.features["heldout_density"].values, density.numpy())
    norm = t.norm(dim=1)
    mine = norm > norm.quantile(0.75)
    assert value("strata", "fve_high_norm") == pytest.approx(float(1 - error[mine].sum() / spread[mine].sum()), rel=1e-5)
    assert "model" not in found.metrics and len(found.notes) == 1


def test_signed_codes_count_on_both_sides() -> None:
    """SAEBench takes > 0 for active in densities, so that of signed codes it sees half."""
    sae, rows = made_sae("abstopk"), rows_of(X)
    found = core.run(HandContext(sae, rows), sae, core.Settings())
    sparsity, l0 = found.metrics["sparsity"], found.metrics["sparsity"]["l0"].value
    assert l0 == 3 and sparsity["l0_negative"].value and sparsity["l0_positive"].value
    assert sparsity["l0_negative"].value + sparsity["l0_positive"].value == pytest.approx(3)
    assert found.features["heldout_density"].values.sum() == pytest.approx(3)


def test_figures_do_not_depend_on_where_the_data_lie_or_how_they_are_cut() -> None:
    """SAEBench's explained variance takes E‖x‖² − (mean of x²)² for the variance, and its mse divides by the batch."""
    sae, shift = made_sae(), torch.full((8,), 30.0)
    far = made_sae()
    far.input.mean.add_(shift)
    far.target.mean.add_(shift)
    near_, far_ = (
        core.run(HandContext(one, rows_of(x)), one, core.Settings()).metrics["reconstruction"]
        for one, x in ((sae, X), (far, X + shift))
    )
    for name in ("fve", "mse", "cosine"):
        assert near_[name].value == pytest.approx(far_[name].value, rel=1e-3)
    half = core.run(HandContext(sae, rows_of(torch.cat([X, X]))), sae, core.Settings()).metrics["reconstruction"]
    assert half["mse"].value == pytest.approx(near_["mse"].value)


def test_perfect_and_constant_reconstructions() -> None:
    rows = rows_of(X)
    for x_hat, fve, cosine in ((X, 1.0, 1.0), (X.mean(0).expand_as(X).clone(), 0.0, None)):
        found = core.fidelity(rows, x_hat, torch.zeros(8))
        assert found["fve"].value == pytest.approx(fve, abs=1e-6)
        assert cosine is None or found["cosine"].value == pytest.approx(cosine)


def test_fve_at_a_budget_is_of_the_finest_values_that_fit() -> None:
    sae, rows = made_sae("abstopk", d_sae=8), rows_of(X)
    with torch.no_grad():  # coordinates, so that finer values are better ones
        sae.W_dec.copy_(torch.eye(8))
        sae.W_enc.copy_(torch.eye(8))
        for tensor in (sae.b_enc, sae.b_dec):
            tensor.zero_()
        for part in (sae.input, sae.target):
            part.mean.copy_(X.mean(0))
    code = sae.encode(X).csr()
    for budget in (4, 12, 40):
        found = core.at_bits(rows, sae, code, (budget,))[f"fve_{budget}"]
        # by trying many steps: the best FVE of those that fit
        best = -np.inf
        for step in np.geomspace(0.005, 20, 400):
            if entropy(count_levels([code], float(step))) <= budget:
                x_hat = sae.decode(quantise(code, float(step))).double()
                t = X.double()
                best = max(best, float(1 - (t - x_hat).square().sum() / (t - t.mean(0)).square().sum()))
        assert found.value == pytest.approx(best, abs=0.03)
    ascending = [core.at_bits(rows, sae, code, (b,))[f"fve_{b}"].value for b in (2, 8, 20, 100)]
    assert all(a is not None and b is not None and a <= b + 1e-6 for a, b in pairwise(ascending))


def test_nothing_active_is_no_error() -> None:
    sae, rows = made_sae(), rows_of(X)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    found = core.run(HandContext(sae, rows), sae, core.Settings())
    assert found.metrics["sparsity"]["l0"].value == 0 and found.metrics["sparsity"]["dead"].value == 1


def test_the_histogram_counts_every_feature_once() -> None:
    density = np.array([0, 0, 1e-6, 1e-4, 0.02, 0.5, 1.0])
    bins = core.density_histogram(density)
    assert sum(one["features"] for one in bins) == 7 and bins[0]["features"] == 2 and bins[-1]["features"] == 2


def test_a_code_of_some_features() -> None:
    code: SparseCode = made_sae("abstopk").encode(X).csr()
    some = torch.arange(24) % 3 == 0
    assert torch.equal(code.only(some).to_dense(), code.to_dense() * some)
    assert torch.equal(code.only(torch.zeros(24, dtype=torch.bool)).to_dense(), torch.zeros(600, 24))


def token_costs(**nats: np.ndarray) -> TokenCosts:
    """Costs of 12 documents with 20 predicted tokens each."""
    unit = np.repeat(np.arange(12), 20)
    units = Units("document", np.arange(12), np.full(12, 20.0))
    return TokenCosts({name: values.reshape(12, 20) for name, values in nats.items()}, units, unit)


@pytest.mark.parametrize("cost", [2.0, 0.0])
def test_ce_recovered_is_undefined_if_ablation_costs_nothing(cost: float) -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(2, 4, 240)
    spliced, mean = clean + rng.normal(0.1, 0.02, 240), clean + cost + rng.normal(0, 0.3, 240)
    found = core.behaviour(token_costs(clean=clean, spliced=spliced, mean=mean, zero=clean + 3, kl=spliced - clean))
    recovered, zero = found["ce_recovered_mean"], found["ce_recovered_zero"]
    assert zero.value == pytest.approx((clean + 3 - spliced).sum() / 720)
    if cost:
        assert recovered.value == pytest.approx((mean - spliced).sum() / (mean - clean).sum())
        assert recovered.low is not None and recovered.low < recovered.value
    else:
        assert (recovered.value, recovered.low, recovered.high, recovered.pseudo) == (None, None, None, None)
