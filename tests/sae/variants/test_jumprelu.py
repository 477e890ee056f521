"""The straight-through gradients against the paper's formulas worked out by hand, and targets that are reached."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import Progress
from sae.init import initialise
from sae.kernels import ParamState, backend
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from tests.sae.toy import Toy, fve, train
from tests.sae.variants.test_variants import D_IN, D_SAE, make, no_dead, rows


def pre(sae: JumpReLU, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d_sae"]:
    return ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()


@pytest.mark.parametrize("d_out", [D_IN, 4])
@pytest.mark.parametrize("fields", [{}, {"sparsity": {"target_l0": 2}, "pull": 3.0}])
def test_the_thresholds_gradient_is_the_papers(d_out: int, fields: dict) -> None:
    """∂L/∂θ = −(θ/ε) Σ K ⟨∂L/∂x̂, W_dec⟩ − (λ/ε) mean Σ K, entry by entry."""
    sae = make("jumprelu", d_out, **fields)
    assert isinstance(sae, JumpReLU)
    sae.theta.data = torch.linspace(0.4, 1.5, D_SAE, dtype=torch.float64) / 5
    x, target, epsilon = rows(), rows(d_out), 0.7
    z = pre(sae, x) if d_out == D_IN else (x @ sae.W_enc + sae.b_enc).detach()
    l0 = (z > sae.threshold).sum(1).double().mean()
    weight = 0.7 if not fields else 2 * 3.0 * (l0 - 2) / 2
    step = sae.losses(x, target, no_dead(sae))
    step.loss.backward()

    by_hand = torch.zeros(D_SAE, dtype=torch.float64)
    n_inside = [0, 0]
    for r in range(len(x)):
        acts = torch.where(z[r] > sae.threshold, z[r], 0).detach()
        g = 2 * (acts @ sae.W_dec + sae.b_dec - target[r]).detach() / len(x)
        for f in range(D_SAE):
            theta = sae.threshold[f].item()
            if abs(float(z[r, f]) - theta) / epsilon < 0.5:
                n_inside[int(z[r, f] > theta)] += 1
                by_hand[f] += -theta / epsilon * (g @ sae.W_dec[f]).item() - weight / epsilon / len(x)
    assert min(n_inside) > 5
    torch.testing.assert_close(sae.theta.grad, 5 * by_hand)


def test_the_penalty_reaches_thresholds_only() -> None:
    sae = make("jumprelu")
    sae.losses(rows(), rows(), no_dead(sae)).terms["l0"].backward()
    assert {name for name, p in sae.named_parameters() if p.grad is not None and p.grad.any()} == {"theta"}


@pytest.mark.parametrize("side", [-1, 1])
def test_no_double_thresholding(side: int) -> None:
    """Half of the window lies below θ, where activations are zero: a step taken of activations would not see it."""
    sae = JumpReLU(JumpReLUConfig(d_sae=1, threshold=1.0, bandwidth=0.5, sparsity={"coefficient": 2.0}), 1)
    sae.W_enc.data.fill_(1.0)
    sae.W_dec.data.fill_(1.0)
    x = torch.tensor([[1.0 + side * 0.2]])
    step = sae.losses(x, x + 3, Progress(torch.zeros(1, dtype=torch.bool), coefficient=2.0))
    assert step.terms["l0"].item() == (2.0 if side > 0 else 0.0)
    step.loss.backward()
    g_x_hat = 2 * ((1.2 if side > 0 else 0.0) - float(x + 3))
    assert sae.theta.grad is not None
    assert sae.theta.grad.item() / 5 == pytest.approx(-(1.0 / 0.5) * g_x_hat - 2.0 / 0.5, rel=1e-6)
    # and what passes is passed whole, once
    assert sae.encode(x).value.tolist() == ([pytest.approx(1.2)] if side > 0 else [])


def test_outside_the_window_there_is_no_gradient() -> None:
    sae = make("jumprelu", bandwidth=1e-9)
    sae.losses(rows(), rows(), no_dead(sae)).loss.backward()
    assert isinstance(sae, JumpReLU) and sae.theta.grad is not None and not sae.theta.grad.any()


def test_thresholds_are_fp32_and_stay_where_activations_are() -> None:
    sae = JumpReLU(
        JumpReLUConfig(d_sae=4, threshold=1.0, bandwidth=0.5, sparsity={"target_l0": 2}), 3
    )
    assert sae.theta.dtype == torch.float32 and "theta" in dict(sae.named_parameters())
    sae.theta.data.copy_(torch.tensor([-1.0, 0.1, 0.25, 2.0]) / 5)
    sae.observe(sae.losses(torch.zeros(2, 3), torch.zeros(2, 3), no_dead(sae)))
    assert sae.threshold.tolist() == pytest.approx([0.25, 0.25, 0.25, 2.0])


def test_where_thresholds_begin() -> None:
    """θ and ε of each kind of config."""
    for fields, start, bandwidth in (
        ({"threshold": 0.3}, 0.3, 0.05), ({"threshold": 2.0}, 2.0, 0.2), ({"threshold": 0.02}, 0.02, 0.02),
        ({"sparsity": {"coefficient": 1.0}}, 0.05, 0.05), ({"sparsity": {"target_l0": 22.75}}, 2.0, 0.2),
        ({"sparsity": {"target_l0": 500}}, 0.05, 0.05), ({"bandwidth": 0.7, "threshold": 0.5}, 0.5, 0.7),
    ):
        sae = JumpReLU(JumpReLUConfig(d_sae=1000, **fields), 64)
        assert sae.threshold.tolist() == pytest.approx([start] * 1000, abs=1e-3)
        assert sae.bandwidth == pytest.approx(bandwidth, abs=1e-4)


@pytest.mark.parametrize("coefficient", [0.3, 1.0, 3.0])
def test_a_fixed_coefficient_leaves_the_l0_that_minimises_the_loss(coefficient: float) -> None:
    """On orthogonal features: found by trying all thresholds, and known: each settles at √λ, where saving pays for λ."""
    d, draw = 24, torch.Generator().manual_seed(0)
    sae = JumpReLU(JumpReLUConfig(d_sae=d, sparsity={"coefficient": coefficient}, init={"b_dec": "zero"}), d)
    sae.W_enc.data.copy_(torch.eye(d))
    sae.W_dec.data.copy_(torch.eye(d))
    theta = ParamState(sae.theta, torch.zeros(d), torch.zeros(d))
    n_steps = 400
    for step in range(1, n_steps + 1):
        x = torch.randn(512, d, generator=draw).abs()
        done = sae.losses(x, x, Progress(torch.zeros(d, dtype=torch.bool), coefficient=coefficient))
        done.loss.backward()
        lr = 3e-3 * min(1.0, (n_steps - step + 1) / (0.3 * n_steps))
        sae.kernels.optimizer_step([theta], step=step, lr=lr, betas=(0.9, 0.999), eps=1e-8, clip=1.0)
        sae.zero_grad(set_to_none=True)
        sae.observe(done)
    x = torch.randn(20_000, d, generator=draw).abs()

    def loss(threshold: float) -> float:
        return float((x.square() * (x <= threshold) + coefficient * (x > threshold)).sum(1).mean())

    best = min(torch.linspace(0, 4, 401).tolist(), key=loss)
    assert best == pytest.approx(coefficient**0.5, abs=0.05)
    l0 = sae.encode(x).l0().float().mean().item()
    assert l0 == pytest.approx((x > best).sum(1).float().mean().item(), rel=0.05)
    assert sae.threshold.tolist() == pytest.approx([best] * d, rel=0.1)


@pytest.mark.parametrize("fields", [{}, {"threshold": 0.2, "bandwidth": 0.2}])
@pytest.mark.parametrize("target", [2, 6])
def test_a_target_l0_is_reached(target: int, fields: dict) -> None:
    toy = Toy()
    sae = train(toy, "jumprelu", sparsity={"target_l0": target}, **fields)
    assert isinstance(sae, JumpReLU)
    x = toy.rows(8192)
    assert sae.encode(x).l0().float().mean().item() == pytest.approx(target, rel=0.05)
    assert fve(sae, x) > (0.55 if target == 2 else 0.9)
    moved = (sae.threshold.detach() - sae.config.start()).abs()
    assert moved.median() > 0.05, "thresholds are frozen"


def test_a_larger_coefficient_leaves_fewer_active() -> None:
    toy = Toy()
    x = toy.rows(4096)
    found = [
        train(toy, "jumprelu", n_steps=200, threshold=0.5, sparsity={"coefficient": c}).encode(x).l0().float().mean()
        for c in (0.01, 0.3, 10.0)
    ]
    assert found[0] > found[1] > found[2] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_thresholds_move_by_less_than_bf16_can_tell(precision: str) -> None:
    """Steps of 5e-5 from 1: a threshold kept in bf16, whose numbers lie 8e-3 apart there, would never move."""
    sae = JumpReLU(JumpReLUConfig(d_sae=64, threshold=1.0, bandwidth=0.5, sparsity={"target_l0": 1}), D_IN)
    initialise(sae, rows().float())
    sae.kernels = backend("cpu", "cpu", precision)
    theta = ParamState(sae.theta, torch.zeros(64), torch.zeros(64))
    x = 2 * torch.randn(256, D_IN, generator=torch.Generator().manual_seed(2))
    for step in range(1, 41):
        sae.losses(x, x, no_dead(sae)).loss.backward()
        sae.kernels.optimizer_step([theta], step=step, lr=1e-5, betas=(0.9, 0.999), eps=1e-8, clip=None)
        sae.zero_grad(set_to_none=True)
    moved = (sae.threshold.detach() - 1).abs()
    assert sae.theta.dtype == torch.float32
    assert 1e-3 < moved.median() < 2.5e-3, "forty steps of 5e-5, and not one lost"
