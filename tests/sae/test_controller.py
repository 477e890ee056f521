"""The controller on toy plants whose L0 falls with the coefficient, slowly and steeply."""

import math

import pytest

from sae.controller import Controller, Sparsity


@pytest.mark.parametrize("target", [4, 32, 200])
@pytest.mark.parametrize("slope", [0.3, 1.0])
@pytest.mark.parametrize("lag", [5, 60])
def test_reaches_its_target(target: float, slope: float, lag: int) -> None:
    controller = Controller(Sparsity(target_l0=target))
    log_l0 = math.log(2000)
    for _ in range(3000):
        settled = math.log(100) - slope * math.log(controller.coefficient)
        log_l0 += (settled - log_l0) / lag
        controller.update(math.exp(log_l0))
    assert math.exp(log_l0) == pytest.approx(target, rel=0.03)


def test_a_fixed_coefficient_stays() -> None:
    controller = Controller(Sparsity(coefficient=0.3))
    controller.update(1000.0)
    assert controller.coefficient == 0.3


def test_continues_from_its_state() -> None:
    a, b = Controller(Sparsity(target_l0=10)), Controller(Sparsity(target_l0=10))
    for l0 in (100.0, 50.0, 20.0):
        a.update(l0)
    b.load(a.state())
    a.update(7.0)
    b.update(7.0)
    assert a.coefficient == b.coefficient


@pytest.mark.parametrize("fields", [{}, {"coefficient": 1.0, "target_l0": 10}])
def test_exactly_one_of_coefficient_and_target(fields: dict) -> None:
    with pytest.raises(ValueError, match="either a coefficient or a target_l0"):
        Sparsity.model_validate(fields)
