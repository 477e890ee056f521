"""Loops over the columns of a code: the active values of each feature, rows ascending.

A column-major code (CSC) has `indptr [d + 1]`, `position` (row ids) and `value`. Outer loops have the signature
`(lo, hi, ...)` of `sae.kernels.cpu.runtime.run` over ranges of features. A feature's results depend on its own column
only, so they are bitwise equal for any number of threads.
"""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu.runtime import jit

SUMMARY = (
    "n_negative", "n_contexts", "n_first", "max", "min", "sum", "sum_of_squares", "mean", "second_moment", "std", "skew",
    "kurtosis",
)
"""Columns of the table of `summarise`."""
SMALLEST_HALF = np.float32(2.0**-24)
"""The smallest positive fp16 number."""


@jit
@no_type_check
def scatter(lo, hi, first_feature, first_row, indptr, feature, value, cursor, position, out):
    """Append the entries of some consecutive rows to the columns of features `first_feature + lo` to `first_feature + hi`.

    `indptr` is relative to the first of these entries. `cursor [n_features]`, the next free place per column, is updated.
    """
    for r in range(indptr.size - 1):
        for e in range(indptr[r], indptr[r + 1]):
            j = feature[e] - first_feature
            if lo <= j < hi:
                at = cursor[j]
                position[at] = first_row + r
                out[at] = value[e]
                cursor[j] = at + 1


@jit
@no_type_check
def summarise(lo, hi, indptr, position, value, n_ctx, first_kept, table):
    """Write counts and moments of each column to `table [n_features, len(SUMMARY)]`; undefined moments are NaN.

    `first_kept [n_seqs]` is the first encoded row of each context.
    """
    for f in range(lo, hi):
        n = indptr[f + 1] - indptr[f]
        n_negative, n_contexts, n_first, context = 0, 0, 0, -1
        high, low = np.float32(0), np.float32(0)
        total, squares = 0.0, 0.0
        for e in range(indptr[f], indptr[f + 1]):
            v = value[e]
            if e == indptr[f] or v > high:
                high = v
            if e == indptr[f] or v < low:
                low = v
            n_negative += v < 0
            total += np.float64(v)
            squares += np.float64(v) * np.float64(v)
            c = position[e] // n_ctx
            n_first += position[e] == first_kept[c]
            n_contexts += c != context
            context = c
        mean = total / n if n else np.nan
        second, third, fourth = 0.0, 0.0, 0.0
        for e in range(indptr[f], indptr[f + 1]):
            d = np.float64(value[e]) - mean
            second += d * d
            third += d * d * d
            fourth += d * d * d * d
        table[f, 0], table[f, 1], table[f, 2], table[f, 3], table[f, 4] = n_negative, n_contexts, n_first, high, low
        table[f, 5], table[f, 6], table[f, 7] = total, squares, mean
        table[f, 8] = squares / n if n else np.nan
        table[f, 9] = np.sqrt(second / n) if n else np.nan
        varies = n > 1 and high > low
        table[f, 10] = (third / n) / (second / n) ** 1.5 if varies else np.nan
        table[f, 11] = (fourth / n) / (second / n) ** 2 - 3 if varies else np.nan


@jit
@no_type_check
def histogram(lo, hi, indptr, value, edges, counts):
    """Count values by sign and size into `counts [n_features, 2, n_bins]`: bin j holds edges[j] ≤ |v| < edges[j + 1].

    `edges` are ascending powers of 2^¼ and span all values.
    """
    for f in range(lo, hi):
        for e in range(indptr[f], indptr[f + 1]):
            size = np.float64(abs(value[e]))
            j = int(np.floor(4 * np.log2(size / edges[0])))
            j = min(max(j, 0), edges.size - 2)
            while edges[j + 1] <= size:
                j += 1
            while edges[j] > size:
                j -= 1
            counts[f, int(value[e] < 0), j] += 1


@jit
@no_type_check
def pool(lo, hi, indptr, position, value, n_ctx, pooled_indptr, context, offset, pooled):
    """Max-pool by context: the value with the largest |value| per context (first on ties) and its offset in the context."""
    for f in range(lo, hi):
        at = pooled_indptr[f] - 1
        last = -1
        for e in range(indptr[f], indptr[f + 1]):
            c = position[e] // n_ctx
            if c != last:
                at += 1
                last = c
                context[at] = c
                pooled[at] = np.float32(0)
            if abs(value[e]) > abs(pooled[at]):
                pooled[at] = value[e]
                offset[at] = position[e] - c * n_ctx


@jit
@no_type_check
def divide_columns(lo, hi, indptr, value, scale, out):
    """`value / scale` of each column, clamped so that no active value underflows to zero in fp16."""
    for f in range(lo, hi):
        for e in range(indptr[f], indptr[f + 1]):
            out[e] = for_half(value[e], scale[f])


@jit
@no_type_check
def divide_entries(lo, hi, feature, value, scale, out):
    """`divide_columns` for entries in any order."""
    for e in range(lo, hi):
        out[e] = for_half(value[e], scale[feature[e]])


@jit
@no_type_check
def for_half(v, scale):
    """v / scale, with magnitude at least the smallest fp16 number."""
    scaled = v / scale
    if abs(scaled) >= SMALLEST_HALF:
        return scaled
    return SMALLEST_HALF if v > 0 else -SMALLEST_HALF
