"""Triton selection kernels of the GPU backend; see `sae.kernels.gpu.code_kernels` for the rules of all kernels.

Scores are ranked by an order-preserving int32 key: the bits of max(score, 0), or of |score| for signed codes. NaN has the
largest key, so that it is selected and noticed rather than dropped. Ties go to the lower feature.

Scores come from the GEMM without bias; each kernel that reads them adds it.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def score_key(score, ABSOLUTE: tl.constexpr):
    """Order-preserving key of a score; 0 means not active."""
    magnitude = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return magnitude if ABSOLUTE else tl.where((score > 0) | (score != score), magnitude, 0)


@triton.jit
@no_type_check
def group_max_kernel(
    score_ptr, bias_ptr, best_ptr, d_sae, n_groups, GROUP: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """The largest key of each group of GROUP neighbouring features, reinterpreted as a float.

    Grid (n_rows, tiles of BLOCK_GROUPS groups).
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    feature = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = feature < d_sae
    score = tl.load(score_ptr + row * d_sae + feature, mask=inside, other=0.0).to(tl.float32)
    score += tl.load(bias_ptr + feature, mask=inside, other=0.0)
    key = tl.where(inside, score_key(score, ABSOLUTE), 0)
    best = tl.max(key, axis=1).to(tl.float32, bitcast=True)
    tl.store(best_ptr + row * n_groups + group, best, mask=group < n_groups)


@triton.jit
@no_type_check
def load_candidates(
    score_ptr, bias_ptr, listed_ptr, row, start, n_candidates, d_sae, SOURCE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr, HAS_BIAS: tl.constexpr,
):
    """BLOCK candidates of a row from `start`: feature, score and key (−1 for none).

    SOURCE 0: all scores of the row. 1: the scores of the listed groups. 2: listed features, each with its own score.
    """
    j = start + tl.arange(0, BLOCK)
    inside = j < n_candidates
    if SOURCE == 1:
        group = tl.load(listed_ptr + row * (n_candidates // GROUP) + j // GROUP, mask=inside, other=0)
        feature = group * GROUP + j % GROUP
        inside = inside & (feature < d_sae)
        score = tl.load(score_ptr + row * d_sae + feature, mask=inside, other=0.0).to(tl.float32)
    elif SOURCE == 2:
        feature = tl.load(listed_ptr + row * n_candidates + j, mask=inside, other=0)
        score = tl.load(score_ptr + row * n_candidates + j, mask=inside, other=0.0)
    else:
        feature = j
        score = tl.load(score_ptr + row * n_candidates + j, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        score += tl.load(bias_ptr + feature, mask=inside, other=0.0)
    key = tl.where(inside, score_key(score, ABSOLUTE), -1)
    return feature, score, key


@triton.jit
@no_type_check
def store_selected(
    feature_ptr, value_ptr, row, k, feature, score, key, bound, n_ties, n_seen_ties, n_stored,
    ABSOLUTE: tl.constexpr, WRITE_VALUE: tl.constexpr,
):
    """Append candidates above the bound and the first `n_ties` at the bound; returns both running counts."""
    tie = (key == bound).to(tl.int32)
    rank = n_seen_ties + tl.cumsum(tie, 0) - tie
    taken = (key > bound) | ((key == bound) & (rank < n_ties))
    kept = taken.to(tl.int32)
    slot = n_stored + tl.cumsum(kept, 0) - kept
    tl.store(feature_ptr + row * k + slot, feature, mask=taken)
    if WRITE_VALUE:
        value = score if ABSOLUTE else tl.where(key > 0, score, 0.0)
        tl.store(value_ptr + row * k + slot, value, mask=taken)
    return n_seen_ties + tl.sum(tie, 0), n_stored + tl.sum(kept, 0)


@triton.jit
@no_type_check
def select_rows_kernel(
    score_ptr, bias_ptr, listed_ptr, feature_ptr, value_ptr, n_candidates, d_sae, k, SOURCE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, ONE_TILE: tl.constexpr, ABSOLUTE: tl.constexpr,
    HAS_BIAS: tl.constexpr, WRITE_VALUE: tl.constexpr,
):
    """The k candidates of a row with the largest keys, in their original order. Grid (n_rows,).

    Exact: the k-th largest key is found bit by bit, by counting. Needs at least k candidates.
    """
    row = tl.program_id(0).to(tl.int64)
    bound = 0
    if ONE_TILE:
        feature, score, key = load_candidates(
            score_ptr, bias_ptr, listed_ptr, row, 0, n_candidates, d_sae, SOURCE, GROUP, BLOCK, ABSOLUTE, HAS_BIAS
        )
        for i in range(31):
            trial = bound | (1 << (30 - i))
            n_above = tl.sum((key >= trial).to(tl.int32), 0)
            bound = tl.where(n_above >= k, trial, bound)
        n_ties = k - tl.sum((key > bound).to(tl.int32), 0)
        store_selected(
            feature_ptr, value_ptr, row, k, feature, score, key, bound, n_ties, 0, 0, ABSOLUTE, WRITE_VALUE
        )
    else:
        for i in range(31):
            trial = bound | (1 << (30 - i))
            n_above = 0
            for start in range(0, n_candidates, BLOCK):
                feature, score, key = load_candidates(
                    score_ptr, bias_ptr, listed_ptr, row, start, n_candidates, d_sae, SOURCE, GROUP, BLOCK, ABSOLUTE,
                    HAS_BIAS,
                )
                n_above += tl.sum((key >= trial).to(tl.int32), 0)
            bound = tl.where(n_above >= k, trial, bound)
        n_ties = k
        for start in range(0, n_candidates, BLOCK):
            feature, score, key = load_candidates(
                score_ptr, bias_ptr, listed_ptr, row, start, n_candidates, d_sae, SOURCE, GROUP, BLOCK, ABSOLUTE,
                HAS_BIAS,
            )
            n_ties -= tl.sum((key > bound).to(tl.int32), 0)
        n_seen_ties = 0
        n_stored = 0
        for start in range(0, n_candidates, BLOCK):
            feature, score, key = load_candidates(
                score_ptr, bias_ptr, listed_ptr, row, start, n_candidates, d_sae, SOURCE, GROUP, BLOCK, ABSOLUTE,
                HAS_BIAS,
            )
            n_seen_ties, n_stored = store_selected(
                feature_ptr, value_ptr, row, k, feature, score, key, bound, n_ties, n_seen_ties, n_stored, ABSOLUTE,
                WRITE_VALUE,
            )


@triton.jit
@no_type_check
def load_above(
    score_ptr, bias_ptr, threshold_ptr, margin_ptr, row, tile, d_sae, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
    PER_FEATURE: tl.constexpr, HAS_MARGIN: tl.constexpr, INCLUSIVE: tl.constexpr,
):
    """One tile of a row: feature, score, and whether it is active, i.e. above its threshold minus the row's margin."""
    feature = tile * BLOCK + tl.arange(0, BLOCK)
    inside = feature < d_sae
    score = tl.load(score_ptr + row * d_sae + feature, mask=inside, other=0.0)
    score += tl.load(bias_ptr + feature, mask=inside, other=0.0)
    limit = tl.load(threshold_ptr + feature * PER_FEATURE, mask=inside, other=0.0)
    if HAS_MARGIN:
        # entries within the margin are re-scored, and may turn out positive
        margin = tl.load(margin_ptr + row)
        limit = tl.maximum(limit, 0.0) - margin
    strength = tl.abs(score) if ABSOLUTE else score
    above = strength >= limit if INCLUSIVE else strength > limit
    if not HAS_MARGIN:
        above = above & (score_key(score, ABSOLUTE) > 0)
    return feature, score, inside & (above | (score != score))


@triton.jit
@no_type_check
def count_above_kernel(
    score_ptr, bias_ptr, threshold_ptr, margin_ptr, count_ptr, d_sae, BLOCK: tl.constexpr, ABSOLUTE: tl.constexpr,
    PER_FEATURE: tl.constexpr, HAS_MARGIN: tl.constexpr, INCLUSIVE: tl.constexpr,
):
    """Number of active scores in each tile. Grid (n_rows, tiles)."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, _, above = load_above(
        score_ptr, bias_ptr, threshold_ptr, margin_ptr, row, tile, d_sae, BLOCK, ABSOLUTE, PER_FEATURE, HAS_MARGIN,
        INCLUSIVE,
    )
    tl.store(count_ptr + row * tl.num_programs(1) + tile, tl.sum(above.to(tl.int32), 0))


@triton.jit
@no_type_check
def compact_above_kernel(
    score_ptr, bias_ptr, threshold_ptr, margin_ptr, end_ptr, feature_ptr, value_ptr, d_sae, BLOCK: tl.constexpr,
    ABSOLUTE: tl.constexpr, PER_FEATURE: tl.constexpr, HAS_MARGIN: tl.constexpr, INCLUSIVE: tl.constexpr,
):
    """Write each tile's active scores so that they end at the tile's running count. Grid (n_rows, tiles)."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    feature, score, above = load_above(
        score_ptr, bias_ptr, threshold_ptr, margin_ptr, row, tile, d_sae, BLOCK, ABSOLUTE, PER_FEATURE, HAS_MARGIN,
        INCLUSIVE,
    )
    kept = above.to(tl.int32)
    end = tl.load(end_ptr + row * tl.num_programs(1) + tile)
    slot = end - tl.sum(kept, 0) + tl.cumsum(kept, 0) - kept
    tl.store(feature_ptr + slot, feature, mask=above)
    tl.store(value_ptr + slot, score, mask=above)
