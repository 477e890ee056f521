"""Metrics against their definitions written out in fp64, one example at a time."""

import math

import pytest
import torch
from torch import Tensor

from analysis.circuits.tasks.examples import Examples, Metric, value
from analysis.circuits.tasks.metrics import (
    METRICS,
    kl,
    log_probability,
    logit_difference,
    probability_difference,
    require_gradient,
    with_reference,
)
from sae.errors import SaescopeError
from training.model.load import load_model

RIGHT = [[3, 5], [1, -1], [0, 2]]
WRONG = [[0, -1, -1], [2, 3, 4], [7, 8, -1]]


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 3 * torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def examples() -> Examples:
    tokens = torch.arange(12).view(3, 4)
    reference = torch.randn(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Examples(tokens, None, torch.tensor(RIGHT), torch.tensor(WRONG), tokens > 0, reference)


def by_hand(name: str, logits: list[float], i: int, reference: list[float]) -> float:
    right, wrong = ([t for t in row if t >= 0] for row in (RIGHT[i], WRONG[i]))
    total = sum(math.exp(x) for x in logits)
    p = [math.exp(x) / total for x in logits]
    if name == "logit_difference":
        return sum(logits[t] for t in right) / len(right) - sum(logits[t] for t in wrong) / len(wrong)
    if name == "log_probability":
        return math.log(sum(p[t] for t in right))
    if name == "probability_difference":
        return sum(p[t] for t in right) - sum(p[t] for t in wrong)
    clean = [math.exp(x) / sum(math.exp(y) for y in reference) for x in reference]
    return sum(q * math.log(q / p_) for q, p_ in zip(clean, p, strict=True))


@pytest.mark.parametrize("name", METRICS)
def test_values(name: str, logits: Tensor, examples: Examples) -> None:
    found = value(METRICS[name], logits, examples)
    assert found.dtype == torch.float64 and examples.reference is not None
    rows = zip(logits[:, -1].tolist(), examples.reference.tolist(), strict=True)
    expected = [by_hand(name, row, i, reference) for i, (row, reference) in enumerate(rows)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_gradients(name: str, logits: Tensor, examples: Examples) -> None:
    metric: Metric = METRICS[name]
    last = logits[:, -1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: metric(x, examples), last)


def test_metrics_are_taken_in_fp32_of_models_of_less(logits: Tensor, examples: Examples) -> None:
    half = logits.bfloat16()
    assert torch.equal(
        value(logit_difference, half, examples), logit_difference(half[:, -1].float(), examples)
    )


def test_kl_of_the_clean_run_is_zero_and_has_no_gradient_there() -> None:
    model = load_model("native:tiny", dtype="float64")
    tokens = torch.arange(24).view(4, 6)
    none = torch.full((4, 1), 5)
    examples = with_reference(model, Examples(tokens, None, none, none + 1, tokens > 2), batch=3)
    logits = model.logits(tokens)
    assert value(kl, logits, examples).abs().max() < 1e-6  # the reference is kept in fp32
    with pytest.raises(SaescopeError, match=r"kl.*ig.*log_probability"):
        require_gradient(kl, logits, examples)
    for metric in (logit_difference, log_probability, probability_difference):
        require_gradient(metric, logits, examples)


def test_a_metric_without_a_gradient_is_refused(logits: Tensor, examples: Examples) -> None:
    def wins(last: Tensor, examples: Examples) -> Tensor:
        return (last.argmax(1) == examples.right[:, 0]).double()

    with pytest.raises(SaescopeError, match="wins"):
        require_gradient(wins, logits, examples)
