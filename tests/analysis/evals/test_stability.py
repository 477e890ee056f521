"""Agreement of dictionaries whose agreement is known, and what shared features carry."""

import copy

import numpy as np
import pytest
import torch

from analysis.evals.controls.cheap import random_sae
from analysis.evals.metrics import stability
from analysis.evals.metrics.stability import Settings, Subset
from sae.base import SAE
from tests.analysis.evals.rows import HandContext, made_sae, rows_of

X = torch.randn(900, 8, generator=torch.Generator().manual_seed(1)) + 3


def shuffled(sae: SAE, order: torch.Tensor) -> SAE:
    """The same dictionary with its features in another order."""
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.W_dec.copy_(sae.W_dec[order])
        other.b_enc.copy_(sae.b_enc[order])
    return other


def test_the_order_of_features_does_not_matter() -> None:
    sae = made_sae()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    found = stability.matched(HandContext(sae, rows_of(X)), sae, shuffled(sae, order))
    live = (sae.encode(X).counts() > 0).numpy()
    assert np.isfinite(found).tolist() == live.tolist()
    assert found[live] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("variant", "turned"), [("abstopk", 1.0), ("topk", None)])
def test_an_opposite_direction_is_the_same_feature_of_signed_codes_only(variant: str, turned: float | None) -> None:
    sae = made_sae(variant)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec.neg_()
    found = stability.matched(HandContext(sae, rows_of(X)), sae, other)
    live = np.isfinite(found)
    assert (found[live] == pytest.approx(1, abs=1e-6)) if turned else found[live].mean() < 0.8


def test_random_dictionaries_agree_as_much_as_random_directions_do() -> None:
    sae = made_sae(d_sae=12, d=200, k=4)
    x = torch.randn(300, 200)
    context = HandContext(sae, rows_of(x))
    first = random_sae(sae, x, x, 4.0, seed=0)
    found = stability.run(context, first, Settings())
    value = found.metrics["agreement"]["pw_mcc"].value
    # of twelve directions in 200 dimensions the best matches are a few times 1 / √200
    assert value is not None and 0.05 < value < 0.25 and "carried" not in found.metrics


def halves(monkeypatch: pytest.MonkeyPatch) -> tuple[HandContext, SAE]:
    """A dictionary, and another seed of it that shares its first twelve features."""
    sae = made_sae()
    other = copy.deepcopy(sae)
    with torch.no_grad():
        others = torch.randn(12, 8, generator=torch.Generator().manual_seed(9))
        other.W_dec[12:] = others / others.norm(dim=1, keepdim=True)
        other.W_enc[:, 12:] = other.W_dec[12:].t()
    monkeypatch.setattr(stability, "seeds", lambda context, most: [other])
    return HandContext(sae, rows_of(X)), sae


def test_what_is_shared_is_stable_and_what_it_carries_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    context, sae = halves(monkeypatch)
    found = stability.run(context, sae, Settings(draws=2))
    cosine = found.features["seed_cosine"].values
    live = np.isfinite(cosine)
    assert (cosine[:12][live[:12]] > 0.999).all()
    stable = np.nan_to_num(cosine) >= stability.STABLE
    agreement = found.metrics["agreement"]
    assert agreement["stable"].value == pytest.approx(stable[live].mean())
    assert agreement["pw_mcc"].value == pytest.approx(cosine[live].mean())
    code = sae.encode(X).csr()
    dense = code.to_dense().double()
    assert agreement["stable_activations"].value == pytest.approx(float((dense[:, stable] != 0).sum() / (dense != 0).sum()))
    # FVE with the others at their mean, from dense matrices
    held = torch.where(torch.from_numpy(stable), dense, dense.mean(0))
    t, d = X.double(), sae.W_dec.detach().double()

    def fve(values: torch.Tensor) -> float:
        t_hat = values @ d + sae.bias().detach().double()
        return float(1 - (t - t_hat).square().sum() / (t - t.mean(0)).square().sum())

    assert found.metrics["carried"]["fve_stable"].value == pytest.approx(fve(held) / fve(dense), rel=1e-4)
    assert "ce_stable" not in found.metrics["carried"]


def test_a_subset_of_all_features_is_the_whole_and_of_none_the_mean() -> None:
    sae = made_sae("abstopk")
    code = sae.encode(X).csr()
    everything = Subset(sae, torch.ones(24, dtype=torch.bool), code)
    assert torch.allclose(everything.decode(everything.encode(X)), sae.decode(code), atol=1e-5)
    nothing = Subset(sae, torch.zeros(24, dtype=torch.bool), code)
    assert torch.allclose(nothing.decode(nothing.encode(X)), sae.decode(code).mean(0).expand_as(X), atol=1e-4)
