"""The Triton kernels that select the k largest of each row: see `sae.kernels.gpu.select_kernels` for how scores rank."""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.select_kernels import score_key, store_selected
from sae.kernels.gpu.weight_kernels import load_rows


@triton.jit
@no_type_check
def kth_key(key, k):
    """A key that at least k keys reach and fewer than k exceed, unless exactly k reach it: found bit by bit."""
    bound = 0
    bit = 30
    while bit >= 0:
        trial = bound | (1 << bit)
        n_above = tl.sum((key >= trial).to(tl.int32), 0)
        bound = tl.where(n_above >= k, trial, bound)
        # with exactly k above it, finer bits change nothing
        bit = tl.where(n_above == k, -1, bit - 1)
    return bound


@triton.jit
@no_type_check
def select_grouped_kernel(
    score_ptr, bias_ptr, best_ptr, group_ptr, feature_ptr, value_ptr, d_sae, n_groups, k, GROUP: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr, WRITE_VALUE: tl.constexpr,
):
    """The k largest of each row, given the maxima of its groups, of which the k largest hold them. Grid (n_rows,).

    `group [n_rows, k]` is room for the groups that are looked into.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    inside = group < n_groups
    best = tl.load(best_ptr + row * n_groups + group, mask=inside, other=0.0)
    key = tl.where(inside, best.to(tl.int32, bitcast=True), -1)
    bound = kth_key(key, k)
    n_ties = k - tl.sum((key > bound).to(tl.int32), 0)
    store_selected(group_ptr, group_ptr, row, k, group, best, key, bound, n_ties, 0, 0, ABSOLUTE, False)
    # read again by other threads of the program
    tl.debug_barrier()
    j = tl.arange(0, BLOCK)
    named = j < k * GROUP
    feature = tl.load(group_ptr + row * k + j // GROUP, mask=named, other=0) * GROUP + j % GROUP
    named = named & (feature < d_sae)
    score = tl.load(score_ptr + row * d_sae + feature, mask=named, other=0.0).to(tl.float32)
    score += tl.load(bias_ptr + feature, mask=named, other=0.0)
    key = tl.where(named, score_key(score, ABSOLUTE), -1)
    bound = kth_key(key, k)
    n_ties = k - tl.sum((key > bound).to(tl.int32), 0)
    store_selected(feature_ptr, value_ptr, row, k, feature, score, key, bound, n_ties, 0, 0, ABSOLUTE, WRITE_VALUE)


@triton.jit
@no_type_check
def score_row(
    feature_ptr, x_ptr, W_ptr, bias_ptr, score_ptr, row, start, end, d, BLOCK_ENTRIES: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):
    """`x[row] · W[feature] + bias` in fp32 of the listed features from `start` to `end`.

    A row is held as BLOCK_A columns and the BLOCK_B after these (0: there are none).
    """
    column_a = tl.arange(0, BLOCK_A)
    x_a = tl.load(x_ptr + row * d + column_a, mask=column_a < d, other=0.0)
    if BLOCK_B > 0:
        column_b = BLOCK_A + tl.arange(0, BLOCK_B)
        x_b = tl.load(x_ptr + row * d + column_b, mask=column_b < d, other=0.0)
    for first in range(start, end, BLOCK_ENTRIES):
        entry = first + tl.arange(0, BLOCK_ENTRIES)
        here = entry < end
        feature = tl.load(feature_ptr + entry, mask=here, other=0).to(tl.int64)
        dot = tl.sum(load_rows(W_ptr, feature, here, column_a, d) * x_a[None, :], axis=1)
        if BLOCK_B > 0:
            dot += tl.sum(load_rows(W_ptr, feature, here, column_b, d) * x_b[None, :], axis=1)
        dot += tl.load(bias_ptr + feature, mask=here, other=0.0)
        tl.store(score_ptr + entry, dot, mask=here)


@triton.jit
@no_type_check
def score_entries_kernel(
    bound_ptr, feature_ptr, x_ptr, W_ptr, bias_ptr, score_ptr, d, BLOCK_ENTRIES: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The score of each entry; those of a row begin at bound[row] and end at bound[row + 1]. Grid (n_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(bound_ptr + row), tl.load(bound_ptr + row + 1)
    score_row(feature_ptr, x_ptr, W_ptr, bias_ptr, score_ptr, row, start, end, d, BLOCK_ENTRIES, BLOCK_A, BLOCK_B)


@triton.jit
@no_type_check
def rescore_kernel(
    listed_ptr, x_ptr, W_ptr, bias_ptr, exact_ptr, feature_ptr, value_ptr, d, n_listed, k, BLOCK_ENTRIES: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_LISTED: tl.constexpr, ABSOLUTE: tl.constexpr,
):
    """The k of each row's listed features with the largest scores; `exact [n_rows, n_listed]` is room for these.

    Grid (n_rows,).
    """
    row = tl.program_id(0).to(tl.int64)
    start = row * n_listed
    score_row(
        listed_ptr, x_ptr, W_ptr, bias_ptr, exact_ptr, row, start, start + n_listed, d, BLOCK_ENTRIES, BLOCK_A, BLOCK_B
    )
    # read again by other threads of the program
    tl.debug_barrier()
    j = tl.arange(0, BLOCK_LISTED)
    feature = tl.load(listed_ptr + start + j, mask=j < n_listed, other=0)
    score = tl.load(exact_ptr + start + j, mask=j < n_listed, other=0.0)
    key = tl.where(j < n_listed, score_key(score, ABSOLUTE), -1)
    bound = kth_key(key, k)
    n_ties = k - tl.sum((key > bound).to(tl.int32), 0)
    store_selected(feature_ptr, value_ptr, row, k, feature, score, key, bound, n_ties, 0, 0, ABSOLUTE, True)
