"""Two features of one SAE beside each other: how alike their directions are, and how often they are active together."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae.errors import SaescopeError
from sae.io.files import read_rows

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.index.types import Both


@dataclass(frozen=True)
class Compared:
    """Two features, `a` and `b`, over all encoded rows."""

    a: int
    b: int
    cosine: float | None
    """Of their decoder rows; None where the weights cannot be read or are not those that were indexed."""
    both: "Both"
    """Where both are active, with examples."""
    jaccard: float | None
    """Rows on which both are active among those on which one is; None if neither ever is."""
    share_a: float | None
    """Of the rows on which a is active, those on which b is too: P(b | a)."""
    share_b: float | None
    """P(a | b)."""
    pearson: float | None
    """Correlation of their values over all encoded rows, 0 where inactive; None for a feature that never varies."""


def compare(index: "Index", a: int, b: int, *, n: int = 10) -> Compared:
    """Compare two features, exactly: from the index's columns, and the two decoder rows.

    Args:
        index: an open index.
        a: a feature.
        b: another, or the same.
        n: examples of contexts in which both are active.

    Raises:
        SaescopeError: there is no such feature.
    """
    both = index.where(a, b, n)
    n_a, n_b = index.feature(a).n_active, index.feature(b).n_active
    either = n_a + n_b - both.total_rows
    return Compared(
        a, b, _cosine(index, a, b), both, both.total_rows / either if either else None,
        both.total_rows / n_a if n_a else None, both.total_rows / n_b if n_b else None, _pearson(index, a, b),
    )


def _cosine(index: "Index", a: int, b: int) -> float | None:
    if index.stale:
        return None
    try:
        rows = read_rows(index.run / "final" / "sae.safetensors", "W_dec", [a, b]).double().numpy()
    except SaescopeError:
        return None
    norms = np.linalg.norm(rows, axis=1)
    return float(rows[0] @ rows[1] / norms.prod()) if norms.all() else None


def _pearson(index: "Index", a: int, b: int) -> float | None:
    """Σ(x − x̄)(y − ȳ) from the sums over active rows alone: all others add nothing to Σx, Σx² and Σxy."""
    (at_a, x), (at_b, y) = (_column(index, feature) for feature in (a, b))
    _, in_a, in_b = np.intersect1d(at_a, at_b, assume_unique=True, return_indices=True)
    n = index.n_rows
    if not n:
        return None
    covariance = x[in_a] @ y[in_b] - x.sum() * y.sum() / n
    spread = [v @ v - v.sum() ** 2 / n for v in (x, y)]
    return float(covariance / math.sqrt(spread[0] * spread[1])) if min(spread) > 0 else None


def _column(index: "Index", feature: int) -> tuple[np.ndarray, np.ndarray]:
    position, value = index.column(feature)
    return np.asarray(position), value.astype(np.float64)
