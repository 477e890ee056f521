"""The masked objective of every variant: gradients, what is hidden, and what the loss is on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sae.base import SAE
from sae.kernels import backend
from sae.masking import masked
from sae.variants import VARIANTS
from sae.variants.mdl import saving
from tests.sae.variants.test_variants import (
    ALL,
    D_IN,
    D_SAE,
    NOT_BY_RECONSTRUCTION,
    STRAIGHT_THROUGH,
    N,
    check_gradients,
    make,
    no_dead,
    rows,
)

HIDE = 0.4


class Objective(nn.Module):
    """One term of the loss that a config asks for."""

    def __init__(self, sae: SAE, term: str = "reconstruction") -> None:
        super().__init__()
        self.sae, self.term = sae, term

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.sae.step(x, target, no_dead(self.sae, step=7)).terms[self.term]


# ICFL holds its codes constant: that is the gradient where they minimise the loss, and here they minimise what is seen
@pytest.mark.parametrize("variant", [one for one in ALL if one != "icfl"])
def test_gradients_reach_every_parameter(variant: str) -> None:
    sae = make(variant, hide=HIDE)
    check_gradients(Objective(sae), rows(), rows(), but=STRAIGHT_THROUGH.get(variant, ()))
    sae.step(rows(), rows(), no_dead(sae, step=7)).terms["reconstruction"].backward()
    unreached = {name for name, p in sae.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert unreached == NOT_BY_RECONSTRUCTION.get(variant, set())


@pytest.mark.parametrize("variant", ALL)
def test_the_loss_is_on_what_the_encoder_does_not_see(variant: str) -> None:
    """By hand from the reconstruction; and nothing else of the hidden entries comes in."""
    sae, plain, x = make(variant, hide=HIDE), make(variant), rows()
    step = sae.step(x, x, no_dead(sae, step=7))
    seen, weight = masked(x, HIDE, sae.config.seed, 7)
    hidden = weight > 0
    assert hidden.any() and not hidden.all()
    unweighted = plain.losses(seen, x, no_dead(plain, step=7))
    torch.testing.assert_close(step.x_hat, unweighted.x_hat)
    whole = plain.losses(x, x, no_dead(plain, step=7)).code
    torch.testing.assert_close(step.code.to_dense(), whole.to_dense(), msg="what is counted is of whole rows")
    if variant != "matryoshka":
        by_hand = ((x - step.x_hat).square() * hidden).sum() / HIDE / N
        torch.testing.assert_close(step.terms["reconstruction"], by_hand)

    other = torch.where(hidden, x + 3, x)
    moved = sae.step(other, other, no_dead(sae, step=7))
    assert torch.equal(moved.x_hat, step.x_hat), "the encoder saw a hidden entry"
    assert moved.loss != step.loss
    shown = sae.step(x, torch.where(hidden, x, x + 3), no_dead(sae, step=7))  # another target there
    assert torch.equal(shown.terms["reconstruction"], step.terms["reconstruction"]), "the loss counts a seen entry"


def test_every_prefix_is_judged_by_the_hidden_entries() -> None:
    sae, x = make("matryoshka", hide=HIDE, auxk={"coefficient": 0}), rows()
    seen, weight = masked(x, HIDE, sae.config.seed, 0)
    x_hats = sae.autoencode(seen, sae.select_in_training(3), prefixes=sae.config.prefixes_at(0)).x_hat  # type: ignore[operator, attr-defined]
    by_hand = [((x - x_hat).square() * weight).sum() / N for x_hat in x_hats]
    torch.testing.assert_close(sae.step(x, x, no_dead(sae)).loss, torch.stack(by_hand).sum())


def test_dead_features_are_revived_for_the_hidden_error() -> None:
    sae, x = make("topk", hide=HIDE, auxk={"coefficient": 0.5, "k": D_SAE}), rows()
    everyone = replace(no_dead(sae, step=7), dead=torch.ones(D_SAE, dtype=torch.bool))
    step, (seen, weight) = sae.step(x, x, everyone), masked(x, HIDE, sae.config.seed, 7)
    aux_hat = ((seen - sae.b_dec) @ sae.W_enc + sae.b_enc).relu() @ sae.W_dec
    error = (x - step.x_hat).detach()
    torch.testing.assert_close(step.terms["auxk"], 0.5 * (weight * (error - aux_hat).square()).sum() / N)


def test_thresholds_feel_the_hidden_error() -> None:
    """JumpReLU's straight-through gradient, written out: −(θ/ε) Σ K ⟨∂loss/∂x̂, W_dec⟩ over the entries in the window."""
    sae, x = make("jumprelu", hide=HIDE), rows()
    step = sae.step(x, x, no_dead(sae, step=7))
    step.terms["reconstruction"].backward()
    seen, weight = masked(x, HIDE, sae.config.seed, 7)
    theta, width = sae.threshold.detach(), sae.bandwidth  # type: ignore[operator, union-attr]
    pre = (seen - sae.b_dec) @ sae.W_enc + sae.b_enc
    inside = ((pre - theta).abs() < width / 2).double()
    slope = 2 * weight * (step.x_hat - x) / N @ sae.W_dec.t()
    expected = -(theta / width) * (inside * slope).sum(0) * sae.threshold_lr  # type: ignore[operator]
    grad = sae.get_parameter("theta").grad
    assert grad is not None and grad.any()
    torch.testing.assert_close(grad, expected.detach())


def test_a_features_saving_is_of_the_weighted_error() -> None:
    """Against leaving each feature out."""
    sae, x = make("mdl", hide=HIDE), rows()
    seen, weight = masked(x, HIDE, 0, 0)
    code, x_hat = sae.autoencode(seen, sae.select()).single()
    got = saving(code.csr(), x - x_hat, sae.W_dec, weight)
    for feature in range(D_SAE):
        acts = code.to_dense()
        acts[:, feature] = 0
        grown = weight * ((x - acts @ sae.W_dec - sae.b_dec).square() - (x - x_hat).square())
        torch.testing.assert_close(got[feature], grown.sum())


def test_masks_follow_from_seed_and_step_alone() -> None:
    x = torch.ones(500, 40)
    first = masked(x, 0.3, 5, 11)
    torch.rand(7)  # what else is drawn does not matter
    again = masked(x, 0.3, 5, 11)
    assert torch.equal(first.x, again.x) and torch.equal(first.weight, again.weight)
    assert float((first.weight > 0).float().mean()) == pytest.approx(0.3, abs=0.015)
    torch.testing.assert_close(first.x + 0.3 * first.weight / (1 - 0.3), x / (1 - 0.3)), "an entry is seen, or counts"
    for seed, step in ((5, 12), (6, 11), (6, 10)):
        other = masked(x, 0.3, seed, step)
        assert float((other.weight > 0).float()[first.weight > 0].mean()) == pytest.approx(0.3, abs=0.03), "independent"
    rows_hidden = (first.weight > 0).float().mean(1)
    assert rows_hidden.std() > 0.05 and len(first.weight.unique(dim=0)) == 500, "each row has a mask of its own"


def test_rows_keep_their_mean_on_average() -> None:
    """Of what the encoder sees, and of the weights."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    drawn = [masked(x, 0.25, 0, step) for step in range(4000)]
    torch.testing.assert_close(torch.stack([m.x for m in drawn]).mean(0), x, atol=0.05, rtol=0.05)
    torch.testing.assert_close(torch.stack([m.weight for m in drawn]).mean(0), torch.ones(3, 8), atol=0.15, rtol=0)


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka"])
def test_the_cpu_kernels_compute_the_same(variant: str) -> None:
    reference, fast, x = make(variant, hide=HIDE).float(), make(variant, hide=HIDE).float(), rows().float()
    fast.kernels = backend("cpu", "cpu", "fp32")
    losses = []
    for sae in (reference, fast):
        step = sae.step(x, x, no_dead(sae, step=3))
        step.loss.backward()
        losses.append(step.loss)
    torch.testing.assert_close(losses[0], losses[1])
    for name, p in reference.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, p.grad, msg=name)


@pytest.mark.parametrize("hide", [1, 1.5, -0.1, True, float("nan")])
def test_a_share_that_is_none_is_refused(hide: float) -> None:
    cls, config = VARIANTS["topk"]
    with pytest.raises(ValueError, match="hide"):
        cls(config.model_validate({"d_sae": D_SAE, "k": 3, "hide": hide}), D_IN)
