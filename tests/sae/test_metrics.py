import numpy as np
import pytest
import torch

from sae.metrics import FVE, bootstrap, recovered


def fve(target: torch.Tensor, x_hat: torch.Tensor, shift: float = 0.0) -> float:
    metric = FVE(4, torch.full((target.shape[1],), shift))
    seq = torch.arange(len(target)) % 4
    for part in (slice(0, 3), slice(3, None)):
        metric.add(seq[part], target[part], x_hat[part])
    return metric.interval().value


def test_fve_of_perfect_mean_and_zero_reconstructions() -> None:
    t = torch.randn(40, 5) + 100
    assert fve(t, t) == pytest.approx(1)
    assert fve(t, t.mean(0).expand(40, -1)) == pytest.approx(0, abs=1e-6)
    # about the mean, not about zero: a library measured 0.98 where 0.78 was true
    assert fve(t, torch.zeros(40, 5)) < -1000


def test_fve_equals_its_definition_whatever_the_shift() -> None:
    t, h = torch.randn(40, 5) + 30, torch.randn(40, 5) + 30
    by_hand = 1 - ((t - h) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    assert fve(t, h, 0.0) == pytest.approx(float(by_hand), rel=1e-5)
    assert fve(t, h, 30.0) == pytest.approx(float(by_hand), rel=1e-5)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        values = rng.normal(1.0, 1.0, size=60)
        interval = bootstrap(lambda w, v=values: float(w @ v / w.sum()), 60, n_resamples=300, seed=seed)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_recovered_is_one_for_the_clean_model_and_zero_for_the_ablated() -> None:
    clean, ablated = np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0, 9.0])
    assert recovered(clean, clean, ablated).value == 1
    assert recovered(clean, ablated, ablated).value == 0
    assert recovered(clean, (clean + ablated) / 2, ablated).value == pytest.approx(0.5)
