"""Triton kernels for the exact n largest scores of a batch: see `sae.kernels.gpu.batch`.

Keys are those of `sae.kernels.gpu.select_kernels`: 31 order-preserving bits. Histograms use int32 atomics, whose order
does not affect the counts.
"""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.select_kernels import score_key

SHIFT = tl.constexpr(19)
FIRST_BIN = tl.constexpr((127 - 9) * 16)
"""256 coarse bins of a sixteenth of an octave; the first includes everything below 2^-9, the last everything above 2^7."""


@triton.jit
@no_type_check
def coarse_histogram_kernel(best_ptr, histogram_ptr, n_groups, BLOCK: tl.constexpr):
    """Histogram of each row's group maxima over 256 coarse bins. Grid (n_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    counts = tl.zeros([256], tl.int32)
    for start in range(0, n_groups, BLOCK):
        group = start + tl.arange(0, BLOCK)
        best = tl.load(best_ptr + row * n_groups + group, mask=group < n_groups, other=0.0)
        coarse = (best.to(tl.int32, bitcast=True) >> SHIFT) - FIRST_BIN
        # lanes without a group count as 0, which affects no bound
        counts += tl.histogram(tl.minimum(tl.maximum(coarse, 0), 255), 256)
    tl.store(histogram_ptr + row * 256 + tl.arange(0, 256), counts)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def list_groups_kernel(best_ptr, histogram_ptr, listed_ptr, count_ptr, least_ptr, n_groups, n, BLOCK: tl.constexpr):
    """List each row's groups whose maximum reaches a bound that n groups of the batch reach (coarse bins). Grid (n_rows,).

    The bound is stored too; it is a lower bound on the n largest scores.
    """
    row = tl.program_id(0).to(tl.int64)
    counts = tl.load(histogram_ptr + tl.arange(0, 256))
    reached = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    coarse = tl.maximum(tl.sum((reached >= n).to(tl.int32), 0) - 1, 0)
    least = tl.where(coarse == 0, 0, (coarse + FIRST_BIN) << SHIFT)
    if row == 0:
        tl.store(least_ptr, least)
    n_listed = 0
    for start in range(0, n_groups, BLOCK):
        group = start + tl.arange(0, BLOCK)
        best = tl.load(best_ptr + row * n_groups + group, mask=group < n_groups, other=0.0)
        taken = ((best.to(tl.int32, bitcast=True) >= least) & (group < n_groups)).to(tl.int32)
        slot = n_listed + tl.cumsum(taken, 0) - taken
        tl.store(listed_ptr + row * n_groups + slot, group, mask=taken > 0)
        n_listed += tl.sum(taken, 0)
    tl.store(count_ptr + row, n_listed)


@triton.jit
@no_type_check
def extent(bound_ptr, row, GROUP: tl.constexpr):
    """Range of a row's candidates: those in listed groups (GROUP > 0), or a slice of a list."""
    if GROUP > 0:
        start, end = row * 0, tl.load(bound_ptr + row).to(tl.int64) * GROUP
    else:
        start, end = tl.load(bound_ptr + row), tl.load(bound_ptr + row + 1)
    return start, end


@triton.jit
@no_type_check
def candidates(
    j, end, row, listed_ptr, score_ptr, bias_ptr, d_sae, n_groups, GROUP: tl.constexpr, ABSOLUTE: tl.constexpr
):
    """Feature, score and key (−1 for none) of candidates of a row."""
    inside = j < end
    if GROUP > 0:
        group = tl.load(listed_ptr + row * n_groups + j // GROUP, mask=inside, other=0)
        feature = group * GROUP + (j % GROUP).to(tl.int32)
        inside = inside & (feature < d_sae)
        score = tl.load(score_ptr + row * d_sae + feature, mask=inside, other=0.0).to(tl.float32)
        score += tl.load(bias_ptr + feature, mask=inside, other=0.0)
    else:
        feature = tl.load(listed_ptr + j, mask=inside, other=0)
        score = tl.load(score_ptr + j, mask=inside, other=0.0)
    return feature, score, tl.where(inside, score_key(score, ABSOLUTE), -1)


@triton.jit
@no_type_check
def histogram_kernel(
    bound_ptr, listed_ptr, score_ptr, bias_ptr, least_ptr, cut_ptr, histogram_ptr, d_sae, n_groups,
    LEVEL: tl.constexpr, N_COPIES: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
):
    """Histogram of candidates by the upper 15 bits of their keys (LEVEL 0), or of those at the cut by the lower 16.

    The first bin is not counted: it is the result if too few are above it (and zeros may be many). Rows are spread over
    N_COPIES histograms to reduce contention, because many scores fall into few bins. Grid (n_rows,).
    """
    row = tl.program_id(0).to(tl.int64)
    start, end = extent(bound_ptr, row, GROUP)
    least = tl.load(least_ptr)
    histogram_ptr += (row % N_COPIES) * (32768 if LEVEL == 0 else 65536)
    for first in range(start, end, BLOCK):
        j = first + tl.arange(0, BLOCK)
        _, _, key = candidates(j, end, row, listed_ptr, score_ptr, bias_ptr, d_sae, n_groups, GROUP, ABSOLUTE)
        if LEVEL == 0:
            counted, place = key >= least, key >> 16
        else:
            counted, place = (key >> 16) == tl.load(cut_ptr), key & 0xFFFF
        counted = counted & (place > 0)
        tl.atomic_add(histogram_ptr + place, 1, mask=counted, sem="relaxed")


@triton.jit
@no_type_check
def find_bin(counts, n, N_BINS: tl.constexpr):
    """The last bin that, together with those above it, has at least n; and how many of the n fall to it."""
    reached = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    found = tl.maximum(tl.sum((reached >= n).to(tl.int32), 0) - 1, 0)
    bins = tl.arange(0, N_BINS)
    return found, n - tl.sum(tl.where(bins == found, reached - counts, 0), 0)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def cut_kernel(histogram_ptr, cut_ptr, n, LEVEL: tl.constexpr, N_COARSE: tl.constexpr, N_FINE: tl.constexpr):
    """The bin of a histogram (N_COARSE · N_FINE bins) at which n entries are at or above the cut. Grid (1,).

    `cut [2]`: the key at the cut (its upper 15 bits after LEVEL 0), and how many entries at the cut to take.
    """
    if LEVEL > 0:
        n = tl.load(cut_ptr + 1)
    rows, columns = tl.arange(0, N_COARSE), tl.arange(0, N_FINE)
    coarse, n = find_bin(tl.sum(tl.load(histogram_ptr + rows[:, None] * N_FINE + columns[None, :]), 1), n, N_COARSE)
    fine, n = find_bin(tl.load(histogram_ptr + coarse * N_FINE + columns), n, N_FINE)
    found = coarse * N_FINE + fine
    if LEVEL > 0:
        found |= tl.load(cut_ptr) << 16
    tl.debug_barrier()
    tl.store(cut_ptr, found)
    tl.store(cut_ptr + 1, n)


@triton.jit
@no_type_check
def count_selected_kernel(
    bound_ptr, listed_ptr, score_ptr, bias_ptr, cut_ptr, count_ptr, n_rows, d_sae, n_groups, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
):
    """Number of candidates of each row above the cut and at the cut: `count [2, n_rows]`. Grid (n_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    start, end = extent(bound_ptr, row, GROUP)
    cut = tl.load(cut_ptr)
    above, on = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for first in range(start, end, BLOCK):
        j = first + tl.arange(0, BLOCK)
        _, _, key = candidates(j, end, row, listed_ptr, score_ptr, bias_ptr, d_sae, n_groups, GROUP, ABSOLUTE)
        above += (key > cut).to(tl.int32)
        on += (key == cut).to(tl.int32)
    tl.store(count_ptr + row, tl.sum(above, 0))
    tl.store(count_ptr + n_rows + row, tl.sum(on, 0))


@triton.jit
@no_type_check
def store_selected_kernel(
    bound_ptr, listed_ptr, score_ptr, bias_ptr, cut_ptr, end_ptr, feature_ptr, value_ptr, indptr_ptr, n_rows, d_sae,
    n_groups, GROUP: tl.constexpr, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
):
    """Write candidates above the cut and the first ones at it, by row and feature. Grid (n_rows,).

    `end [2, n_rows]`: running sums of the counts of `count_selected_kernel`.
    """
    row = tl.program_id(0).to(tl.int64)
    start, end = extent(bound_ptr, row, GROUP)
    cut, n_on = tl.load(cut_ptr), tl.load(cut_ptr + 1).to(tl.int64)
    n_above = tl.load(end_ptr + row - 1, mask=row > 0, other=0)
    n_seen = tl.load(end_ptr + n_rows + row - 1, mask=row > 0, other=0)
    n_stored = n_above + tl.minimum(n_seen, n_on)
    if row == 0:
        tl.store(indptr_ptr, n_stored)
    for first in range(start, end, BLOCK):
        j = first + tl.arange(0, BLOCK)
        feature, score, key = candidates(
            j, end, row, listed_ptr, score_ptr, bias_ptr, d_sae, n_groups, GROUP, ABSOLUTE
        )
        taken = key > cut
        on = (key == cut).to(tl.int32)
        n_here = tl.sum(on, 0)
        if n_here > 0:
            taken = taken | ((key == cut) & (n_seen + tl.cumsum(on, 0) - on < n_on))
        kept = taken.to(tl.int32)
        slot = n_stored + tl.cumsum(kept, 0) - kept
        tl.store(feature_ptr + slot, feature, mask=taken)
        tl.store(value_ptr + slot, score if ABSOLUTE else tl.where(key > 0, score, 0.0), mask=taken)
        n_seen += n_here
        n_stored += tl.sum(kept, 0)
    tl.store(indptr_ptr + row + 1, n_stored)
