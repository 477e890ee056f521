"""Queries over several features: contexts in which two features fire, and contexts similar to a prompt.

Both use the peaks per context (`context_*`): for each feature the contexts it is active in, ascending, with its largest
value by magnitude there. These are the block maxima of an inverted index with one block per context.
"""

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from analysis.index.types import Both, Similar
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.index.read import Index
    from sae.code import SparseCode

BEFORE, AFTER = 12, 11
"""Tokens shown around the two peaks."""
_AT_ONCE = 1 << 22
"""Peak values squared at a time."""
BITMAP_FROM = 16
"""Length ratio of the two lists up to which a bitmap is faster than binary search."""


def where(index: "Index", a: int, b: int, n: int, other: "Index | None" = None) -> Both:
    """Count shared rows and contexts, and return the contexts in which the weaker of the two features is strongest.

    Strength is relative to the feature's largest |value|; ties go to the first context. Each example spans both peaks.
    `other` is the index of b if it belongs to another SAE; it must be over the same text.
    """
    other = other or index
    rows_a, rows_b = index._column(a)[0], other._column(b)[0]
    seq_a, offset_a, size_a = _peaks(index, a)
    seq_b, offset_b, size_b = _peaks(other, b)
    in_a, in_b = shared(seq_a, seq_b, index.n_seqs)
    weaker = np.minimum(size_a[in_a], size_b[in_b])
    best = np.lexsort((seq_a[in_a], -weaker))[: max(0, n)]
    examples = []
    for i in best.tolist():
        seq, at_a, at_b = int(seq_a[in_a[i]]), int(offset_a[in_a[i]]), int(offset_b[in_b[i]])
        start, stop = max(0, min(at_a, at_b) - BEFORE), min(index.n_ctx, max(at_a, at_b) + AFTER + 1)
        seen_by_a = index._example(a, seq, at_a, start, stop)
        values = other.values(b, seq, seen_by_a.start, seen_by_a.stop).tolist()
        seen_by_b = replace(seen_by_a, feature=b, position=at_b, values=values, value=values[at_b - seen_by_a.start])
        examples.append((seen_by_a, seen_by_b))
    n_both = len(shared(rows_a, rows_b, index.n_seqs * index.n_ctx)[0])
    return Both(n_both, len(in_a), examples)


def _peaks(index: "Index", feature: int) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " n"]]:
    """Contexts, offsets and relative magnitudes of a feature's peaks."""
    lo, hi = (int(x) for x in index.arrays["context_indptr"][feature : feature + 2])
    size = np.abs(index.arrays["context_value"][lo:hi].astype(np.float32))
    return index.arrays["context_seq"][lo:hi], index.arrays["context_offset"][lo:hi], size / max(size.max(initial=0), 1e-30)


def shared(
    a: Int32[np.ndarray, " n"], b: Int32[np.ndarray, " m"], n_all: int
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Positions, in each of two ascending lists of numbers below n_all, of their common members."""
    if len(a) > len(b):
        in_b, in_a = shared(b, a, n_all)
        return in_a, in_b
    if len(b) > BITMAP_FROM * len(a) or 4 * len(b) < n_all // 64:
        place = np.searchsorted(b, a)
        found = b[np.minimum(place, len(b) - 1)] == a if len(b) else np.zeros(len(a), bool)
        return np.flatnonzero(found), place[found]
    return _marked(a, b, n_all), _marked(b, a, n_all)


def _marked(a: Int32[np.ndarray, " n"], b: Int32[np.ndarray, " m"], n_all: int) -> Int64[np.ndarray, " k"]:
    """Positions of members of a that are in b, using a bitmap of b."""
    marks: Bool[np.ndarray, " n_all"] = np.zeros(n_all, bool)
    marks[b] = True
    return np.flatnonzero(marks[a])


def similar(index: "Index", code: "SparseCode", n: int) -> list[Similar]:
    """Scan the peaks of the prompt's features and compute the exact cosine of every context that shares one.

    Features are weighted by `rarity`, so one that is active in every context has no influence.
    """
    if code.d_sae != index.d_sae:
        raise SaescopeError(f"the code has {code.d_sae} features, the index {index.d_sae}: they are of different SAEs.")
    features, values = pooled(code)
    weight = rarity(index)[features]
    values = values * weight
    norm = float(np.sqrt((values**2).sum()))
    if norm == 0:
        return []
    dots, norms = _dots(index, features, values * weight), index.weighted_norms
    cosine = np.divide(dots, norms * norm, out=np.zeros_like(dots), where=norms > 0)
    touched = np.flatnonzero(dots)
    order = touched[np.lexsort((touched, -cosine[touched]))][: max(0, n)]
    return [Similar(int(seq), float(cosine[seq])) for seq in order]


def rarity(index: "Index") -> Float64[np.ndarray, " d_sae"]:
    """log(contexts / contexts that a feature is active in), as in inverse document frequency (Spärck Jones 1972)."""
    n_contexts = np.diff(np.asarray(index.arrays["context_indptr"]))
    return np.log(index.n_seqs / np.maximum(1, n_contexts))


def weighted_norms(index: "Index") -> Float64[np.ndarray, " n_seqs"]:
    """The norm of each context's peaks, weighted by rarity."""
    arrays, squares = index.arrays, np.zeros(index.n_seqs)
    bounds = np.asarray(arrays["context_indptr"])
    factor = arrays["scale"].astype(np.float64) * rarity(index)
    cuts = np.unique(np.searchsorted(bounds, np.arange(0, bounds[-1] + _AT_ONCE, _AT_ONCE)).clip(max=index.d_sae))
    for first, last in pairwise([0, *cuts.tolist(), index.d_sae]):
        some = slice(bounds[first], bounds[last])
        values = arrays["context_value"][some] * np.repeat(factor[first:last], np.diff(bounds[first : last + 1]))
        squares += np.bincount(arrays["context_seq"][some], np.square(values), index.n_seqs)
    return np.sqrt(squares)


def _dots(
    index: "Index", features: Int64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n_seqs"]:
    """Dot products of the prompt's weighted peaks with every context's, features ascending."""
    from sae.kernels.columns import pairs
    from sae.kernels.cpu import runtime

    arrays, dots = index.arrays, np.zeros(index.n_seqs)
    bounds = np.asarray(arrays["context_indptr"])
    factors = values * arrays["scale"][features].astype(np.float64)
    bits = np.asarray(arrays["context_value"]).view(np.uint16)
    with runtime.LOCK:
        pairs.add_products(
            bounds[features], bounds[features + 1], factors, np.asarray(arrays["context_seq"]), bits,
            pairs.HALVES, dots,
        )
    return dots


def pooled(code: "SparseCode") -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Max-pool a code by magnitude: each feature's largest value, features ascending."""
    code = code.csr()
    feature, value = code.feature.cpu().numpy().astype(np.int64), code.value.detach().double().cpu().numpy()
    order = np.lexsort((-np.abs(value), feature))
    feature, value = feature[order], value[order]
    first = np.concatenate([[True], feature[1:] != feature[:-1]]) if len(feature) else np.zeros(0, bool)
    return feature[first], value[first]
