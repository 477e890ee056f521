"""Triton kernels for the k largest of each row; see `sae.kernels.gpu.select_kernels` for how scores are ranked."""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.select_kernels import score_key
from sae.kernels.gpu.weight_kernels import load_rows


@triton.jit
@no_type_check
def kth_key(key, k, most):
    """A key that at least k keys reach, found bit by bit: the k-th largest, or one that at most `most` keys reach.

    Returns the key and how many reach it.
    """
    bound, n_reached = 0, most + 1
    bit = 30
    while bit >= 0:
        trial = bound | (1 << bit)
        n_above = tl.sum((key >= trial).to(tl.int32), 0)
        n_reached = tl.where(n_above >= k, n_above, n_reached)
        bound = tl.where(n_above >= k, trial, bound)
        # few enough reach it: stop early
        bit = tl.where((n_above >= k) & (n_above <= most), -1, bit - 1)
    return bound, n_reached


@triton.jit
@no_type_check
def store_listed(out_ptr, listed, taken):
    """Compact the taken elements, in order."""
    kept = taken.to(tl.int32)
    slot = tl.cumsum(kept, 0) - kept
    tl.store(out_ptr + slot, listed, mask=taken)


@triton.jit
@no_type_check
def first_of_equals(key, bound, k):
    """Mask of keys above the bound and the first ones at the bound, k in all."""
    on = (key == bound).to(tl.int32)
    n_on = k - tl.sum((key > bound).to(tl.int32), 0)
    return (key > bound) | ((key == bound) & (tl.cumsum(on, 0) - on < n_on))


@triton.jit
@no_type_check
def select_grouped_kernel(
    score_ptr, bias_ptr, best_ptr, group_ptr, feature_ptr, value_ptr, d_sae, n_groups, k, GROUP: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
):
    """The k largest of each row, which are in the k groups with the largest maxima. Grid (n_rows,).

    `group [n_rows, BLOCK / GROUP]` is scratch for the groups that are scanned.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    best = tl.load(best_ptr + row * n_groups + group, mask=group < n_groups, other=0.0)
    key = tl.where(group < n_groups, best.to(tl.int32, bitcast=True), -1)
    group_ptr += row * (BLOCK // GROUP)
    bound, n_reached = kth_key(key, k, BLOCK // GROUP)
    taken = key >= bound
    if n_reached > BLOCK // GROUP:
        taken = first_of_equals(key, bound, k)
    store_listed(group_ptr, group, taken)
    n_listed = tl.where(n_reached > BLOCK // GROUP, k, n_reached)
    # read again by other threads of the program
    tl.debug_barrier()
    j = tl.arange(0, BLOCK)
    named = j < n_listed * GROUP
    feature = tl.load(group_ptr + j // GROUP, mask=named, other=0) * GROUP + j % GROUP
    named = named & (feature < d_sae)
    score = tl.load(score_ptr + row * d_sae + feature, mask=named, other=0.0).to(tl.float32)
    score += tl.load(bias_ptr + feature, mask=named, other=0.0)
    key = tl.where(named, score_key(score, ABSOLUTE), -1)
    value = score if ABSOLUTE else tl.where(key > 0, score, 0.0)
    select_tile(feature_ptr + row * k, value_ptr + row * k, feature, value, key, k)


@triton.jit
@no_type_check
def select_tile(feature_ptr, value_ptr, feature, value, key, k):
    """Write the k elements of a tile with the largest keys, in order."""
    bound, n_reached = kth_key(key, k, k)
    taken = key >= bound
    if n_reached > k:
        taken = first_of_equals(key, bound, k)
    store_listed(feature_ptr, feature, taken)
    store_listed(value_ptr, value, taken)


@triton.jit
@no_type_check
def score_block(
    feature, here, W_ptr, bias_ptr, x_a, x_b, d, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr
):
    """`x · W[feature] + bias` in fp32 for a few features; the row is split into BLOCK_A and the next BLOCK_B columns."""
    feature = feature.to(tl.int64)
    dot = tl.sum(load_rows(W_ptr, feature, here, tl.arange(0, BLOCK_A), d) * x_a[None, :], axis=1)
    if BLOCK_B > 0:
        dot += tl.sum(load_rows(W_ptr, feature, here, BLOCK_A + tl.arange(0, BLOCK_B), d) * x_b[None, :], axis=1)
    return dot + tl.load(bias_ptr + feature, mask=here, other=0.0)


@triton.jit
@no_type_check
def row_of(x_ptr, row, d, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """A row in two parts; the second repeats the first if BLOCK_B is 0."""
    column = tl.arange(0, BLOCK_A)
    x_a = tl.load(x_ptr + row * d + column, mask=column < d, other=0.0)
    x_b = x_a
    if BLOCK_B > 0:
        column = BLOCK_A + tl.arange(0, BLOCK_B)
        x_b = tl.load(x_ptr + row * d + column, mask=column < d, other=0.0)
    return x_a, x_b


@triton.jit
@no_type_check
def score_entries_kernel(
    bound_ptr, feature_ptr, x_ptr, W_ptr, bias_ptr, score_ptr, d, BLOCK_ENTRIES: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The score of each entry; a row's entries are bound[row] to bound[row + 1]. Grid (n_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    x_a, x_b = row_of(x_ptr, row, d, BLOCK_A, BLOCK_B)
    end = tl.load(bound_ptr + row + 1)
    for first in range(tl.load(bound_ptr + row), end, BLOCK_ENTRIES):
        entry = first + tl.arange(0, BLOCK_ENTRIES)
        feature = tl.load(feature_ptr + entry, mask=entry < end, other=0)
        score = score_block(feature, entry < end, W_ptr, bias_ptr, x_a, x_b, d, BLOCK_A, BLOCK_B)
        tl.store(score_ptr + entry, score, mask=entry < end)


@triton.jit
@no_type_check
def strength_of(score, ABSOLUTE: tl.constexpr):
    """The magnitude by which scores are compared."""
    return tl.abs(score) if ABSOLUTE else score


@triton.jit
@no_type_check
def score_some(
    among, position, feature, row_ptr, W_ptr, bias_ptr, x_a, x_b, exact_ptr, n_listed, d, BLOCK_ENTRIES: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):
    """Score the listed features of a row where `among` is true; `row [2 · n_listed]` is scratch."""
    store_listed(row_ptr, position, among)
    store_listed(row_ptr + n_listed, feature, among)
    # read again by other threads of the program
    tl.debug_barrier()
    n_wanted = tl.sum(among.to(tl.int32), 0)
    for first in range(0, n_wanted, BLOCK_ENTRIES):
        entry = first + tl.arange(0, BLOCK_ENTRIES)
        wanted = tl.load(row_ptr + n_listed + entry, mask=entry < n_wanted, other=0)
        at = tl.load(row_ptr + entry, mask=entry < n_wanted, other=0)
        score = score_block(wanted, entry < n_wanted, W_ptr, bias_ptr, x_a, x_b, d, BLOCK_A, BLOCK_B)
        tl.store(exact_ptr + at, score, mask=entry < n_wanted)
    tl.debug_barrier()


@triton.jit
@no_type_check
def rescore_kernel(
    listed_ptr, rough_ptr, x_ptr, W_ptr, bias_ptr, exact_ptr, room_ptr, feature_ptr, value_ptr, d, n_listed, k,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_LISTED: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """The k listed features of each row with the largest fp32 scores, given rough scores. Grid (n_rows,).

    The k with the largest rough scores are re-scored first. Of the others, only those are re-scored that could be among
    the k if their rough scores were off by twice the largest error seen, or by bf16 rounding; all of them if k is too
    small to estimate the error. `exact [n_rows, n_listed]` and `room [n_rows, 2 · n_listed]` are scratch.
    """
    row = tl.program_id(0).to(tl.int64)
    x_a, x_b = row_of(x_ptr, row, d, BLOCK_A, BLOCK_B)
    exact_ptr += row * n_listed
    room_ptr += row * n_listed * 2
    j = tl.arange(0, BLOCK_LISTED)
    inside = j < n_listed
    feature = tl.load(listed_ptr + row * n_listed + j, mask=inside, other=0)
    rough = tl.load(rough_ptr + row * n_listed + j, mask=inside, other=0.0)
    key = tl.where(inside, score_key(rough, ABSOLUTE), -1)
    bound, _ = kth_key(key, k, k)
    first = key >= bound
    score_some(
        first, j, feature, room_ptr, W_ptr, bias_ptr, x_a, x_b, exact_ptr, n_listed, d, BLOCK_ENTRIES, BLOCK_A, BLOCK_B
    )
    exact = tl.load(exact_ptr + j, mask=first, other=0.0)
    error = tl.max(tl.where(first, tl.abs(exact - rough), 0.0), 0)
    error = tl.maximum(2 * error, bound.to(tl.float32, bitcast=True) / 128)
    least = tl.min(tl.where(first, strength_of(exact, ABSOLUTE), float("inf")), 0) - error
    least = tl.where(k < 16, float("-inf"), least)
    doubtful = inside & (key < bound) & (strength_of(rough, ABSOLUTE) >= least)
    score_some(
        doubtful, j, feature, room_ptr, W_ptr, bias_ptr, x_a, x_b, exact_ptr, n_listed, d, BLOCK_ENTRIES, BLOCK_A, BLOCK_B
    )
    known = first | doubtful
    exact = tl.load(exact_ptr + j, mask=known, other=0.0)
    key = tl.where(known, score_key(exact, ABSOLUTE), -1)
    value = exact if ABSOLUTE else tl.where(key > 0, exact, 0.0)
    select_tile(feature_ptr + row * k, value_ptr + row * k, feature, value, key, k)
