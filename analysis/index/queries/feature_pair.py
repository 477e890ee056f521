"""Compare two features of one or two SAEs: decoder similarity and co-activation."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int32

from analysis.index.queries import cooccurrence
from sae.errors import SaescopeError
from sae.io.files import read_rows

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.index.types import Both


@dataclass(frozen=True)
class Compared:
    """Comparison of two features, `a` and `b`, over all rows encoded in both indexes."""

    a: int
    b: int
    cosine: float | None
    """Cosine of their decoder rows; None if the weights can't be read or have changed since indexing, or if the two
    directions are in different spaces."""
    both: "Both | None"
    """Rows and contexts in which both are active. None for indexes over different text, like all fields below."""
    jaccard: float | None
    """Jaccard index of their active rows; None if neither is ever active."""
    share_a: float | None
    """P(b | a): share of a's active rows on which b is active too."""
    share_b: float | None
    """P(a | b)."""
    pearson: float | None
    """Correlation of their values over all encoded rows, 0 where inactive; None if either is constant."""


def compare(index: "Index", a: int, b: int, other: "Index | None" = None, *, n: int = 10) -> Compared:
    """Compare two features exactly, from the indexes' columns and the two decoder rows.

    Args:
        index: index of a.
        a: a feature.
        b: another feature, or the same.
        other: index of b, if b belongs to another SAE. Without the same text there is no co-activation; without the same
            site and model there is no cosine.
        n: number of example contexts in which both are active.

    Raises:
        SaescopeError: there is no such feature.
    """
    other = other or index
    index.feature(a)
    other.feature(b)
    cosine = _cosine(index, a, other, b) if same_space(index, other) else None
    if not same_text(index, other):
        return Compared(a, b, cosine, None, None, None, None, None)
    rows = _common(index, other)
    at_a, at_b = (_column(i, f, rows)[0] for i, f in ((index, a), (other, b)))
    n_both = len(np.intersect1d(at_a, at_b, assume_unique=True))
    either = len(at_a) + len(at_b) - n_both
    both = cooccurrence.where(index, a, b, n, other)
    return Compared(
        a, b, cosine, both if rows is None else replace(both, total_rows=n_both), n_both / either if either else None,
        n_both / len(at_a) if len(at_a) else None, n_both / len(at_b) if len(at_b) else None,
        correlation(index, a, other, b),
    )


def correlation(index: "Index", a: int, other: "Index", b: int) -> float | None:
    """Pearson correlation of two features' values over rows encoded in both indexes; None if either is constant."""
    rows = _common(index, other)
    (at_a, x), (at_b, y) = (_column(i, f, rows) for i, f in ((index, a), (other, b)))
    _, in_a, in_b = np.intersect1d(at_a, at_b, assume_unique=True, return_indices=True)
    return _pearson(x, y, float(x[in_a] @ y[in_b]), index.n_rows if rows is None else int(rows.sum()))


def same_text(a: "Index", b: "Index") -> bool:
    """Whether two indexes are over the same tokens."""
    if a is b:
        return True
    tokens = [one.manifest["files"]["tokens.npy"] for one in (a, b)]
    # rows without text have no tokens to compare
    return tokens[0] == tokens[1] and a.vocabulary is not None and b.vocabulary is not None


def same_space(a: "Index", b: "Index") -> bool:
    """Whether the decoder directions of two SAEs are comparable: same site, same model."""
    if a is b:
        return True
    (x, y) = (one.manifest.get("about", {}) for one in (a, b))
    sites = (x.get("site", {}), y.get("site", {}))
    place = [(site.get("target") or site.get("input"), site.get("update")) for site in sites]
    # without a model, compare the source of the activations
    source = "model" if x.get("model") else "corpus"
    return place[0] == place[1] and all(x.get(key) == y.get(key) for key in ("d_out", "model", source))


def _common(a: "Index", b: "Index") -> Bool[np.ndarray, " n"] | None:
    """Mask of rows encoded in both indexes; None if both encode the same rows."""
    kept_a, kept_b = (one.arrays["kept"].reshape(-1) for one in (a, b))
    return None if a is b or np.array_equal(kept_a, kept_b) else kept_a & kept_b


def _cosine(index: "Index", a: int, other: "Index", b: int) -> float | None:
    if index.stale or other.stale:
        return None
    try:
        (x, y) = (read_rows(one.run / "final" / "sae.safetensors", "W_dec", [f])[0].double().numpy()
                  for one, f in ((index, a), (other, b)))
    except SaescopeError:
        return None
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if norms else None


def _pearson(
    x: Float64[np.ndarray, " n_a"], y: Float64[np.ndarray, " n_b"], products: float, n: int
) -> float | None:
    """Correlation from sums over active rows only: inactive rows add nothing to Σx, Σx² and Σxy."""
    if not n:
        return None
    covariance = products - x.sum() * y.sum() / n
    spread = [v @ v - v.sum() ** 2 / n for v in (x, y)]
    return float(covariance / math.sqrt(spread[0] * spread[1])) if min(spread) > 0 else None


def _column(
    index: "Index", feature: int, rows: Bool[np.ndarray, " n"] | None
) -> tuple[Int32[np.ndarray, " n_active"], Float64[np.ndarray, " n_active"]]:
    position, value = index.column(feature)
    kept = slice(None) if rows is None else rows[position]
    return np.asarray(position)[kept], value.astype(np.float64)[kept]
