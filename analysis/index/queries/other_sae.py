"""The nearest features in another SAE, by decoder direction and by correlation on the same text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from analysis.index.queries.feature_pair import correlation, same_space, same_text
from analysis.index.types import Neighbour
from sae.errors import SaescopeError
from sae.io.files import read_rows, read_tensors

if TYPE_CHECKING:
    from analysis.index import Index


@dataclass(frozen=True)
class Nearest:
    """The nearest features of another SAE, or the reasons why there are none."""

    by_cosine: list[Neighbour]
    by_correlation: list[Neighbour]
    no_cosine: str | None = None
    no_correlation: str | None = None


def nearest(index: "Index", feature: int, other: "Index", n: int = 5) -> Nearest:
    """The exact nearest features of `other` to one feature of `index`.

    By cosine of decoder rows (|cosine| if either SAE has signed codes), if both SAEs reconstruct the same site of the
    same model; and by correlation of values over rows encoded in both indexes, if both are over the same tokens.

    Raises:
        SaescopeError: there is no such feature.
    """
    index.feature(feature)
    by_cosine: list[Neighbour] = []
    no_cosine = None
    if not same_space(index, other):
        no_cosine = "it reconstructs another site or another model"
    elif index.stale or other.stale:
        no_cosine = "weights have changed since indexing"
    else:
        try:
            by_cosine = _by_cosine(index, feature, other, n)
        except SaescopeError as error:
            no_cosine = str(error)
    if not same_text(index, other):
        return Nearest(by_cosine, [], no_cosine, "its index is over a different text")
    return Nearest(by_cosine, _by_correlation(index, feature, other, n), no_cosine)


def _by_cosine(index: "Index", feature: int, other: "Index", n: int) -> list[Neighbour]:
    mine = read_rows(index.run / "final" / "sae.safetensors", "W_dec", [feature])[0].float().numpy()
    theirs = read_tensors(other.run / "final" / "sae.safetensors")["W_dec"].float().numpy()
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(mine)
    cosine = np.divide(theirs @ mine, norms, out=np.zeros(len(theirs), np.float32), where=norms > 0).astype(np.float64)
    return _best(cosine, np.abs(cosine) if index.signed or other.signed else cosine, n)


def _by_correlation(index: "Index", feature: int, other: "Index", n: int) -> list[Neighbour]:
    """Rank by correlation: Σxy over the feature's active rows, Σy and Σy² from the index minus rows only it has encoded.

    Those sums are from before rounding to fp16, so the top candidates are recomputed from the stored values.
    """
    from sae.kernels.columns.values import SUMMARY

    kept_a, kept_b = (one.arrays["kept"].reshape(-1) for one in (index, other))
    n_rows = int((kept_a & kept_b).sum())
    at, value = index.column(feature)
    common = kept_b[at]
    at, x = np.asarray(at)[common].astype(np.int64), value[common].astype(np.float64)
    if not n_rows or not len(x):
        return []
    row, theirs, y = _entries(other, at)
    products = np.bincount(theirs, x[row] * y, other.d_sae)
    sums, squares = (other.arrays["summary"][:, SUMMARY.index(name)].copy() for name in ("sum", "sum_of_squares"))
    _, alone, z = _entries(other, np.flatnonzero(kept_b & ~kept_a))
    sums -= np.bincount(alone, z, other.d_sae)
    squares -= np.bincount(alone, z * z, other.d_sae)
    spread_x, spread = x @ x - x.sum() ** 2 / n_rows, squares - sums**2 / n_rows
    covariance = products - x.sum() * sums / n_rows
    known = (spread > 1e-9 * np.maximum(squares, 1e-30)) & (spread_x > 0)
    scale = np.sqrt(np.maximum(spread, 0.0) * max(spread_x, 0.0))
    nearly = np.divide(covariance, scale, out=np.zeros(other.d_sae), where=known)
    exact = [Neighbour(one.feature, r) for one in _best(nearly, nearly, 2 * n)
             if (r := correlation(index, feature, other, one.feature)) is not None]
    return sorted(exact, key=lambda one: (-one.score, one.feature))[:n]


def _entries(
    index: "Index", rows: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """All entries of the given rows: position in `rows`, feature, value."""
    indptr = index.arrays["row_indptr"]
    first = np.asarray(indptr[rows], dtype=np.int64)
    lengths = np.asarray(indptr[np.asarray(rows) + 1], dtype=np.int64) - first
    row = np.repeat(np.arange(len(rows)), lengths)
    before = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    place = np.arange(int(lengths.sum())) - np.repeat(before - first, lengths)
    feature = index.arrays["row_feature"][place].astype(np.int64)
    return row, feature, index.arrays["row_value"][place].astype(np.float64) * index.scale[feature]


def _best(score: Float64[np.ndarray, " d_sae"], size: Float64[np.ndarray, " d_sae"], n: int) -> list[Neighbour]:
    order = np.lexsort((np.arange(len(size)), -size))[:n]
    return [Neighbour(int(i), float(score[i])) for i in order if size[i] > 0]
