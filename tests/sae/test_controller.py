"""The controller on toy plants whose L0 falls with the coefficient, slowly and steeply, and on trainings of seconds."""

import math
import random

import pytest

from sae.controller import Controller, Sparsity
from tests.sae.toy import N_TRUE, Toy, train

STEPS = 600


def steer(
    target: float, *, slope: float = 1.0, lag: int = 20, n_steps: int = 5 * STEPS, decay: float = 0.0,
    noise: float = 0.0, delay: int = 0,
) -> list[float]:
    """log(L0 / target) of every step: a plant that settles at L0 = 1000 λ^−slope, each step nearer by pace / lag.

    `decay` is the share of the steps over which the pace falls to zero, `delay` the steps after which λ acts.
    """
    controller = Controller(Sparsity(target_l0=target), STEPS)
    generator = random.Random(0)
    log_l0, past, seen = math.log(2000), [0.0] * (delay + 1), []
    for n in range(n_steps):
        pace = min(1.0, (n_steps - n) / (decay * n_steps)) if decay else 1.0
        past = [*past[1:], math.log(controller.coefficient)]
        settled = math.log(1000) - slope * past[0]
        log_l0 += (settled - log_l0) * pace / lag
        controller.update(math.exp(log_l0 + generator.gauss(0, noise)))
        seen.append(log_l0 - math.log(target))
    return seen


@pytest.mark.parametrize("target", [16, 32, 200])
@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("lag", [5, 60, STEPS // 5])
def test_reaches_its_target_and_does_not_overshoot(target: float, slope: float, lag: int) -> None:
    seen = steer(target, slope=slope, lag=lag, decay=0.3)
    assert abs(seen[-1]) < 0.01
    assert min(seen) > -0.2


def test_asks_for_a_straight_line_on_the_way() -> None:
    seen = steer(4, lag=5)
    assert 1.0 < seen[STEPS // 2] < seen[0] - 1.0, "the target was asked for at once, or not at all"
    assert seen[2 * STEPS] < 0.05


def test_noise_delay_and_a_falling_learning_rate_do_not_carry_it_off() -> None:
    seen = steer(32, lag=60, decay=0.3, noise=0.2, delay=30)
    assert max(map(abs, seen[2 * STEPS :])) < 0.06


def test_a_drift_is_followed_while_the_learning_rate_falls() -> None:
    # what λ buys changes by a tenth while the rate falls
    controller, log_l0, n_steps = Controller(Sparsity(target_l0=10), STEPS), math.log(500), 5 * STEPS
    for n in range(n_steps):
        pace = min(1.0, 5 * (n_steps - n) / n_steps)
        level = math.log(100) - 0.1 * (1 - pace)
        log_l0 += (level - math.log(controller.coefficient) - log_l0) * pace / 30
        controller.update(math.exp(log_l0))
    assert abs(log_l0 - math.log(10)) < 0.03


def test_a_target_out_of_reach_does_not_overflow() -> None:
    controller = Controller(Sparsity(target_l0=1), 10)
    for _ in range(2000):
        controller.update(1e6)
    assert math.isfinite(controller.coefficient)
    for _ in range(2000):
        controller.update(0.0)
    assert controller.coefficient > 0


def test_a_fixed_coefficient_stays() -> None:
    controller = Controller(Sparsity(coefficient=0.3), 10)
    controller.update(1000.0)
    assert controller.coefficient == 0.3


def test_continues_from_its_state() -> None:
    a, b = Controller(Sparsity(target_l0=10), 5), Controller(Sparsity(target_l0=10), 5)
    for l0 in (100.0, 50.0, 20.0):
        a.update(l0)
    b.load(a.state())
    a.update(7.0)
    b.update(7.0)
    assert a.coefficient == b.coefficient != 1.0


@pytest.mark.parametrize("fields", [{}, {"coefficient": 1.0, "target_l0": 10}])
def test_exactly_one_of_coefficient_and_target(fields: dict) -> None:
    with pytest.raises(ValueError, match="either a coefficient or a target_l0"):
        Sparsity.model_validate(fields)


@pytest.mark.parametrize("variant", ["relu", "gated"])
def test_a_training_of_seconds_ends_at_its_target(variant: str) -> None:
    toy = Toy()
    sae = train(toy, variant, d_sae=2 * N_TRUE, sparsity={"target_l0": 3.0})
    assert float(sae.encode(toy.rows(8192)).l0().float().mean()) == pytest.approx(3.0, rel=0.05)
