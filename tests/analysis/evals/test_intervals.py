"""Intervals of figures and of differences, against leaving out by hand and against how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.evals.common.intervals import difference, metric, plain, ratio
from analysis.evals.common.result import Metric
from sae import metrics as over_documents

RNG = np.random.default_rng(0)


def mean_of(values: np.ndarray, n_rows: np.ndarray | None = None) -> Metric:
    n_rows = np.ones(len(values)) if n_rows is None else n_rows
    return ratio(values * n_rows, n_rows, n_rows, unit="", direction="higher", formula="mean")


def test_a_ratio_is_the_one_of_held_out_metrics() -> None:
    over, under, n = RNG.random(30), 1 + RNG.random(30), RNG.integers(1, 9, 30).astype(float)
    found, known = ratio(over, under, n, unit="", direction="higher", formula="f"), over_documents.ratio(over, under, n)
    assert (found.value, found.low, found.high, found.n) == (known.value, known.low, known.high, 30)


def test_units_without_rows_say_nothing() -> None:
    n = np.array([2.0, 0, 1, *[1] * 12])
    found = mean_of(np.arange(15.0), n)
    assert found.n == 14 and found.pseudo is not None and math.isnan(found.pseudo[1])
    assert found.value == pytest.approx(float((np.arange(15) * n).sum() / n.sum()))


def test_the_interval_of_a_difference_is_that_of_leaving_documents_out_of_both() -> None:
    n = RNG.integers(1, 5, 20).astype(float)
    sums = [np.stack([RNG.random(20), 1 + RNG.random(20)], axis=1) for _ in range(2)]
    found = difference(*([metric(lambda s: s[:, 0] / s[:, 1] ** 2, one, n, unit="", direction="none", formula="")]
                         for one in sums), n)
    assert found is not None and found.low is not None

    def by_hand(keep: np.ndarray) -> float:
        a, b = (one[keep].sum(0) for one in sums)
        return float(b[0] / b[1] ** 2 - a[0] / a[1] ** 2)

    everything = np.ones(20, dtype=bool)
    without = np.array([by_hand(np.arange(20) != i) for i in range(20)])
    half = stats.t.ppf(0.975, n.sum() ** 2 / (n**2).sum() - 1) * math.sqrt(19 * without.var())
    assert found.value == pytest.approx(by_hand(everything))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-4)


def test_what_makes_a_document_hard_for_both_cancels() -> None:
    hard = RNG.normal(0, 10, 40)
    a, b = mean_of(hard + RNG.normal(0, 0.01, 40)), mean_of(hard + 0.5 + RNG.normal(0, 0.01, 40))
    assert a.low is not None and a.high is not None and a.high - a.low > 4
    found = difference([a], [b], np.ones(40))
    assert found is not None and found.separable and found.value == pytest.approx(0.5, abs=0.02)
    assert not found.beyond_seeds and found.n_seeds == (1, 1)


@pytest.mark.parametrize("between_seeds", [0.0, 0.3, 2.0])
def test_a_difference_over_seeds_and_documents_holds_the_truth_as_often_as_it_says(between_seeds: float) -> None:
    """Of 30 documents and 3 seeds a side, with effects of the document, of the seed, and of the two together."""
    rng, held, n = np.random.default_rng(1), 0, 250
    for _ in range(n):
        hard = rng.normal(0, 1, 30)
        a, b = (
            [mean_of(hard + rng.normal(0, 1, 30) * 0.7 + rng.normal(0, between_seeds) + shift) for _ in range(3)]
            for shift in (0.0, 1.0)
        )
        found = difference(a, b, np.ones(30))
        assert found is not None and found.low is not None and found.high is not None and found.error_seeds is not None
        held += found.low <= 1.0 <= found.high
    # what documents add is counted with the noise of seeds too, so it errs to the wide side
    assert 0.94 <= held / n <= 1.0


def test_how_many_seeds_would_separate() -> None:
    """Without documents: half the width is t(2n − 2) · s · √(2/n), here with s = 1 on both sides."""
    values = np.array([-1.0, 0.0, 1.0])
    a = [plain(float(v), unit="", direction="higher", formula="", n=1) for v in values]
    b = [plain(float(v) + 1.2, unit="", direction="higher", formula="", n=1) for v in values]
    found = difference(a, b)
    assert found is not None and not found.separable and found.error_seeds == pytest.approx(math.sqrt(2 / 3))
    half = {n: stats.t.ppf(0.975, 2 * n - 2) * math.sqrt(2 / n) for n in range(2, 30)}
    assert found.low == pytest.approx(1.2 - half[3], rel=1e-3)
    assert found.seeds_needed == next(n for n in half if half[n] < 1.2)
    far = difference(a, [plain(one.value + 50, unit="", direction="higher", formula="", n=1) for one in a])  # type: ignore[operator]
    assert far is not None and far.separable and far.beyond_seeds and far.seeds_needed is None


def test_no_number_of_seeds_helps_where_documents_are_too_few() -> None:
    noise = RNG.normal(0, 5, 12)
    a, b = ([mean_of(scale * noise + shift) for shift in (0.0, 0.1, -0.1)] for scale in (1.0, -1.0))
    found = difference(a, b, np.ones(12))
    assert found is not None and not found.separable and found.seeds_needed is None


def test_what_is_undefined_has_no_difference() -> None:
    nothing = plain(None, unit="", direction="none", formula="", n=0)
    assert difference([nothing], [mean_of(RNG.random(12))]) is None
    alone = difference([plain(1.0, unit="", direction="none", formula="", n=1)],
                       [plain(2.0, unit="", direction="none", formula="", n=1)])
    assert alone is not None and alone.value == 1 and alone.low is None and not alone.separable
