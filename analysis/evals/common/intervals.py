"""Confidence intervals of metrics over documents and seeds, and of the difference of two metrics.

A metric is a function of sums over units (usually documents), so every unit has a jackknife pseudo-value
(`sae.metrics.pseudo_values`). A single metric gets the jackknife interval. For two metrics over the same units, the
pseudo-values are subtracted pairwise, so that document difficulty cancels. If both sides have several seeds, the variance
of a difference is

    s² = s_units² + s_A² / n_A + s_B² / n_B

where s_units is the jackknife standard error of the difference of the two means over seeds, and s_A, s_B are the standard
deviations over seeds: seeds and documents are crossed, and each contributes its own variance. Degrees of freedom are
Welch–Satterthwaite. (A bootstrap over three seeds draws from three numbers; its intervals are too short by construction.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.evals.common.result import Direction, Metric
from sae import metrics as over_documents
from sae.metrics import MIN_DOCUMENTS, effective, standard_error, t_quantile

Statistic = Callable[[Float[np.ndarray, "n_draws n_sums"]], Float[np.ndarray, " n_draws"]]
MOST_SEEDS = 1000


def metric(
    statistic: Statistic, sums: Float[np.ndarray, "n_units n_sums"], n_rows: Float[np.ndarray, " n_units"], *, unit: str,
    direction: Direction, formula: str, of: str = "rows",
) -> Metric:
    """A metric computed from sums over units, with its interval.

    Args:
        statistic: function of the column sums, vectorised over draws.
        sums: contribution of each unit to each sum.
        n_rows: rows of each unit; units without rows are ignored.
        unit, direction, formula, of: see `Metric`.
    """
    there = n_rows > 0
    value, said = over_documents.pseudo_values(statistic, sums[there])
    interval = over_documents.spread_of(value, said, n_rows[there])
    pseudo = np.full(len(n_rows), math.nan)
    pseudo[there] = said
    return Metric(value, unit, direction, formula, int(there.sum()), interval.low, interval.high, pseudo, of)


def ratio(
    over: Float[np.ndarray, " n_units"], under: Float[np.ndarray, " n_units"], n_rows: Float[np.ndarray, " n_units"], *,
    unit: str, direction: Direction, formula: str, of: str = "rows",
) -> Metric:
    """Σ over / Σ under with its interval, from each unit's contributions."""
    sums = np.stack([over, under], axis=1)
    return metric(_quotient, sums, n_rows, unit=unit, direction=direction, formula=formula, of=of)


def plain(value: float | None, *, unit: str, direction: Direction, formula: str, n: int) -> Metric:
    """A metric without an interval."""
    return Metric(value, unit, direction, formula, n)


def _quotient(sums: Float[np.ndarray, "n_draws two"]) -> Float[np.ndarray, " n_draws"]:
    return sums[:, 0] / sums[:, 1]


@dataclass(frozen=True)
class Difference:
    """B − A, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    error_units: float | None
    """Standard error over documents."""
    error_seeds: float | None
    """Standard error over seeds; None if either side has one seed only."""
    n_seeds: tuple[int, int]
    n_units: int
    seeds_needed: int | None
    """Seeds per side that would separate the two, all else equal; None if no number would, or no more are needed."""

    @property
    def separable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def beyond_seeds(self) -> bool:
        """Whether the interval excludes zero and includes seed noise."""
        return self.separable and self.error_seeds is not None


def difference(
    a: Sequence[Metric], b: Sequence[Metric], n_rows: Float[np.ndarray, " n_units"] | None = None
) -> Difference | None:
    """Difference of a metric between two sides, each with one or several seeds, on the same units.

    Args:
        a, b: the metric on each side, one per seed.
        n_rows: rows of each unit.

    Returns: the difference; None if a value is undefined.
    """
    values = [[one.value for one in side] for side in (a, b)]
    if any(v is None for side in values for v in side) or not all(values):
        return None
    first, second = (np.array(side, dtype=np.float64) for side in values)
    n_a, n_b = len(first), len(second)
    value = float(second.mean() - first.mean())
    said = _paired(a, b)
    error_units, n_units, df_units = None, 0, 1.0
    if said is not None and n_rows is not None:
        there = np.isfinite(said)
        n_units = int(there.sum())
        if n_units >= MIN_DOCUMENTS:
            error_units, df_units = standard_error(said[there]), effective(n_rows[there]) - 1
    variances = (float(first.var(ddof=1)), float(second.var(ddof=1))) if min(n_a, n_b) > 1 else None
    error_seeds = None if variances is None else math.sqrt(variances[0] / n_a + variances[1] / n_b)
    if error_units is None and error_seeds is None:
        return Difference(value, None, None, None, None, (n_a, n_b), n_units, None)
    half = _half(error_units, df_units, variances, n_a, n_b)
    needed = None
    if variances is not None and half >= abs(value):
        needed = _seeds_needed(abs(value), error_units, df_units, variances, max(n_a, n_b))
    return Difference(value, value - half, value + half, error_units, error_seeds, (n_a, n_b), n_units, needed)


def _paired(a: Sequence[Metric], b: Sequence[Metric]) -> Float[np.ndarray, " n_units"] | None:
    """Pseudo-values of the difference of means over seeds."""
    said = [[one.pseudo for one in side if one.pseudo is not None] for side in (a, b)]
    if [len(side) for side in said] != [len(a), len(b)] or len({one.shape for side in said for one in side}) > 1:
        return None
    first, second = (np.mean(np.stack(side), axis=0) for side in said)
    return second - first


def _half(
    error_units: float | None, df_units: float, variances: tuple[float, float] | None, n_a: int, n_b: int
) -> float:
    """Half the width of the interval."""
    parts = [] if error_units is None else [(error_units**2, max(df_units, 1.0))]
    if variances is not None:
        parts += [(variances[0] / n_a, n_a - 1), (variances[1] / n_b, n_b - 1)]
    total = sum(part for part, _ in parts)
    under = sum(part**2 / df for part, df in parts)
    return math.sqrt(total) * t_quantile(total**2 / under) if under > 0 else 0.0


def _seeds_needed(
    distance: float, error_units: float | None, df_units: float, variances: tuple[float, float], have: int
) -> int | None:
    """Smallest number of seeds per side, above the current one, at which the interval would exclude `distance`."""
    enough: Callable[[int], bool] = lambda n: _half(error_units, df_units, variances, n, n) < distance  # noqa: E731
    if not enough(MOST_SEEDS):
        return None
    few, many = have, MOST_SEEDS
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many
