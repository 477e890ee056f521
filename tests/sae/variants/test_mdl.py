"""The bits against a code that is counted out, the gradients against formulas worked out by hand, and what is pruned."""

import math

import pytest
import torch
from torch import Tensor

from analysis.mdl.description_length import Encoded
from sae.base import Progress
from sae.code import from_dense
from sae.variants.mdl import MDL, MDLConfig, MDLStep, code_bits, saving
from tests.sae.toy import Toy, fve, train
from tests.sae.variants.test_variants import D_IN, D_SAE, Loss, check_gradients, make, no_dead, rows

STEP, PRICE = 0.3, 0.7 * 1e-4 * D_IN


def experienced() -> MDL:
    """With firing rates and means of its own for each feature."""
    sae = make("mdl")
    assert isinstance(sae, MDL)
    sae.theta.data = torch.linspace(0.4, 1.5, D_SAE, dtype=torch.float64) / 5
    sae.n_seen.fill_(500)
    sae.fired.copy_(torch.linspace(0, 400, D_SAE))
    sae.excess.copy_(torch.linspace(0.2, 1.1, D_SAE) * sae.fired)
    return sae


def by_hand(sae: MDL, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, p and μ, from the formulas of the docstring."""
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    p = (sae.fired + 0.5) / 501
    mu = (sae.excess + (sae.excess.sum() + STEP) / (sae.fired.sum() + 1)) / (sae.fired + 1)
    return pre, p, mu


def test_the_loss_is_distortion_plus_bits_entry_by_entry() -> None:
    sae, x = experienced(), rows()
    pre, p, mu = by_hand(sae, x)
    step, threshold = sae.losses(x, x, no_dead(sae)), sae.threshold.detach()
    bits = rounding = 0.0
    for r in range(len(x)):
        for f in range(D_SAE):
            a, theta = float(pre[r, f]), float(threshold[f])
            if a > theta:
                bits -= math.log2(p[f])
                bits -= math.log2(1 - math.exp(-STEP / mu[f])) - (a - theta) / float(mu[f]) * math.log2(math.e)
                rounding += STEP**2 / 12
            else:
                bits -= math.log2(1 - p[f])
    n = len(x)
    assert step.logs["bits"] == pytest.approx(bits / n)
    expected = (x - step.x_hat).square().sum(1).mean() + rounding / n + PRICE * bits / n
    torch.testing.assert_close(step.loss, expected)


def test_a_value_takes_at_least_the_bits_of_its_level() -> None:
    """In whole steps an exponential is geometric: probabilities sum to one, and the code never undercuts them."""
    mean, quantum = torch.tensor([0.2, 1.0, 7.0]).double(), 0.5
    bits = code_bits(torch.full((3,), 0.5).double(), mean, quantum)
    level = torch.arange(400).double()[:, None]
    total = torch.exp2(-(bits.least + bits.slope * level * quantum)).sum(0)
    torch.testing.assert_close(total, torch.ones(3).double())
    assert (bits.on.abs() < 1e-12).all() and torch.equal(bits.off, torch.ones(3).double())


def test_the_step_is_the_best_for_the_price() -> None:
    sae = MDL(MDLConfig(d_sae=4), 8)
    quantum, price = sae.quantum(3.0), sae.price(3.0)
    assert price == pytest.approx(3e-4 * 8)
    cost = [q**2 / 12 - price * math.log2(q) for q in (0.99 * quantum, quantum, 1.01 * quantum)]
    assert cost[1] < min(cost[0], cost[2])
    assert MDL(MDLConfig(d_sae=4, step=0.2), 8).quantum(3.0) == 0.2


def test_rounding_adds_what_the_loss_says() -> None:
    """The expectation over uniform errors of the active values, with unit decoder rows, against draws."""
    sae, x = experienced(), rows()
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    step = sae.losses(x, x, no_dead(sae))
    acts = step.code.to_dense().detach()
    g = torch.Generator().manual_seed(0)
    drawn = 0.0
    for _ in range(1000):
        noise = (acts != 0) * STEP * (torch.rand(acts.shape, generator=g, dtype=torch.float64) - 0.5)
        # of both signs, so that what is linear in it cancels
        for noisy in (acts + noise, acts - noise):
            drawn += float((noisy @ sae.W_dec + sae.b_dec - x).square().sum().detach()) / len(x) / 2000
    l0 = float(step.code.n_active) / len(x)
    added = drawn - float(step.terms["reconstruction"].detach())
    assert added == pytest.approx(l0 * STEP**2 / 12, rel=0.05)


def test_smooth_parts_by_finite_differences() -> None:
    """θ too, where it is no step: the excess over it. (The reconstruction is checked with that of all variants.)"""
    sae = experienced()
    check_gradients(Loss(sae, "values", no_dead(sae)), rows(), rows(), but={"W_dec"})
    sae.losses(rows(), rows(), no_dead(sae)).terms["values"].backward()
    assert sae.W_dec.grad is None or not sae.W_dec.grad.any()


@pytest.mark.parametrize("d_out", [D_IN, 4])
def test_the_thresholds_gradient_is_the_formula(d_out: int) -> None:
    """−(θ/ε) Σ K ⟨∂D/∂x̂, W_dec⟩ − (c/ε) mean Σ K − λ log2 e · active / (μ n), entry by entry."""
    sae = make("mdl", d_out)
    for name in ("theta", "n_seen", "fired", "excess"):
        getattr(sae, name).data.copy_(getattr(experienced(), name).data)
    assert isinstance(sae, MDL)
    x, target, epsilon, n = rows(), rows(d_out), 0.7, len(rows())
    scale = d_out / D_IN
    p, mu = (sae.fired + 0.5) / 501, sae.mean_excess(STEP)
    price = PRICE * scale * (torch.log2((1 - p) / p) - torch.log2(1 - torch.exp(-STEP / mu))) + STEP**2 / 12
    z = ((x - sae.b_dec if d_out == D_IN else x) @ sae.W_enc + sae.b_enc).detach()
    sae.losses(x, target, no_dead(sae)).loss.backward()
    sae.requires_grad_(False)
    expected, inside = torch.zeros(D_SAE, dtype=torch.float64), 0
    for r in range(n):
        acts = torch.where(z[r] > sae.threshold, z[r], 0).detach()
        g = 2 * (acts @ sae.W_dec + sae.b_dec - target[r]).detach() / n
        for f in range(D_SAE):
            theta = float(sae.threshold[f])
            if abs(float(z[r, f]) - theta) < epsilon / 2:
                inside += 1
                expected[f] += -theta / epsilon * float(g @ sae.W_dec[f]) - float(price[f]) / epsilon / n
            if z[r, f] > theta:
                expected[f] -= PRICE * scale * math.log2(math.e) / float(mu[f]) / n
    assert inside > 10
    torch.testing.assert_close(sae.theta.grad, 5 * expected)


def test_firing_rates_and_means_are_running_estimates() -> None:
    sae = make("mdl", memory=0.5)
    assert isinstance(sae, MDL)
    assert torch.equal(sae.rates(), torch.full((D_SAE,), 0.5).double()), "nothing is known yet, and nothing is charged"
    seen, fired = 0.0, torch.zeros(D_SAE).double()
    for seed in range(3):
        x = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(seed)).double()
        step = sae.losses(x, x, no_dead(sae))
        sae.observe(step)
        seen, fired = 0.5 * seen + 20, 0.5 * fired + step.code.counts()
    torch.testing.assert_close(sae.rates(), (fired + 0.5) / (seen + 1))


def test_a_feature_that_is_always_active_costs_next_to_nothing() -> None:
    """Also where so many rows were seen that 1 − p is below the resolution of fp32."""
    sae = make("mdl").float()
    assert isinstance(sae, MDL)
    for n in (1e3, 1e9):
        sae.n_seen.fill_(n)
        sae.fired.fill_(n)
        sae.b_enc.data.fill_(100)
        step = sae.losses(rows().float(), rows().float(), no_dead(sae))
        bits = code_bits(sae.rates(), sae.mean_excess(STEP), STEP)
        assert torch.isfinite(step.loss) and bool((bits.on < -10 + 0.1).all())
        # on costs off + on, which is −log2 p
        assert float((bits.on + bits.off).abs().max()) < 1e-3


def test_what_a_feature_saves_is_what_the_error_grows_by_without_it() -> None:
    sae, x = experienced(), rows()
    step = sae.losses(x, x, no_dead(sae))
    acts = step.code.to_dense().detach()
    error = (x - step.x_hat).detach()
    found = saving(step.code.detach(), error, sae.W_dec.detach())
    for f in range(D_SAE):
        without = acts.clone()
        without[:, f] = 0
        grown = (without @ sae.W_dec + sae.b_dec - x).square().sum() - error.square().sum()
        torch.testing.assert_close(found[f], grown.detach())
    assert saving(from_dense(torch.zeros(2, 3)), torch.ones(2, 4), torch.ones(3, 4)).tolist() == [0, 0, 0]


def test_a_feature_that_costs_more_than_it_saves_is_switched_off_for_good() -> None:
    sae, x = make("mdl", prune_from="50%", memory=0.5), rows()
    assert isinstance(sae, MDL)
    sae.W_dec.data[3] = 0  # active and useless
    sae.b_enc.data[3] = 5
    sae.b_enc.data[4] = -50  # never active

    def late(step: int, share: float) -> Progress:
        return Progress(torch.zeros(D_SAE, dtype=torch.bool), lambda d: min(1.0, 100 * share / max(d.value, 1)), 0.7, step)

    sae.observe(sae.losses(x, x, late(0, 0.4)))
    assert not sae.pruned.any(), "too early"
    for step in range(1, 4):
        sae.observe(sae.losses(x, x, late(step, 0.6)))
    assert not sae.pruned.any(), "savings are measured in every fourth step"
    before = sae.losses(x, x, late(4, 0.6))
    assert isinstance(before, MDLStep) and before.tally.net is not None
    sae.observe(before)
    assert torch.equal(sae.pruned, before.tally.net < 0)
    assert sae.pruned[3] and sae.pruned[4] and not sae.pruned.all()
    after = sae.losses(x, x, late(5, 0.6))
    assert after.logs["pruned"] == float(sae.pruned.sum())
    assert not (after.code.counts() * sae.pruned).any() and not (sae.encode(x).counts() * sae.pruned).any()
    after.loss.backward()
    assert sae.theta.grad is not None and sae.W_enc.grad is not None
    assert not sae.theta.grad[sae.pruned].any() and not sae.W_enc.grad[:, sae.pruned].any()


def test_a_decoder_that_must_be_paid_for_leaves_fewer_features() -> None:
    left = []
    for bits in (0.0, 1000.0, 1e6):
        sae, x = make("mdl", prune_from="0%", memory=0.1, decoder_bits=bits), rows()
        assert isinstance(sae, MDL)
        sae.b_dec.data.zero_()
        sae.observe(sae.losses(x, sae(x).detach() + 0.01 * x, no_dead(sae)))
        left.append(int((~sae.pruned).sum()))
    assert left[0] > left[1] > left[2] == 0


def test_width_and_sparsity_come_out_of_the_data() -> None:
    """96 features for 48 true directions: each of these is found, and what is left over is rarely active or pruned."""
    toy = Toy()
    sae = train(toy, "mdl", n_steps=350, d_sae=96, sparsity={"coefficient": 40.0}, start_l0=6)
    assert isinstance(sae, MDL)
    x = toy.rows(8192)
    assert fve(sae, x) > 0.85
    found = Encoded(sae, x).at(sae.quantum(40.0) / float(sae.target.scale))
    step = sae.losses(x, x, Progress(torch.zeros(96, dtype=torch.bool), coefficient=40.0))
    # the bits it trains on are a bound on those that are measured, and not a loose one
    assert found.bits < step.logs["bits"] < 1.3 * found.bits
    assert 2 < found.l0 < 4
    kept = sae.W_dec.detach()[~sae.pruned & (sae.rates() > 0.01)]
    assert (toy.directions @ kept.T).max(1).values.mean() > 0.95


def test_dearer_bits_are_fewer() -> None:
    toy = Toy()
    x = toy.rows(4096)
    found = [
        train(toy, "mdl", n_steps=100, start_l0=6, sparsity={"coefficient": c}).encode(x).l0().float().mean()
        for c in (5.0, 200.0)
    ]
    assert found[0] > 1.5 * found[1] > 0


def test_a_target_l0_is_steered_to() -> None:
    toy = Toy()
    sae = train(toy, "mdl", n_steps=300, sparsity={"target_l0": 3, "start": 10.0}, start_l0=6)
    assert sae.encode(toy.rows(8192)).l0().float().mean().item() == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 0}, "greater than 0"), ({"memory": 1.0}, "less than 1"), ({"memory": 0.0}, "greater than 0"),
        ({"sparsity": {"coefficient": -1.0}}, "greater than 0"), ({"decoder_bits": -1.0}, "greater than or equal to 0"),
        ({"start_l0": 21}, "start_l0 = 21 exceeds d_sae = 20"), ({"threshold": -1.0}, "greater than 0"),
        ({"threshold": 0.1, "bandwidth": 0.3}, "bandwidth = 0.3 is more than twice the initial threshold"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDLConfig.model_validate({"d_sae": 20, **fields})
