"""Launchers of the Triton selection kernels: one function per operation, tensors in and out."""

import math

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from sae.kernels.gpu import products, topk_kernels
from sae.kernels.gpu import select_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2, recording, two_blocks

PLAIN, GROUPS, LISTED = 0, 1, 2
"""Source of a row's candidates: see `select_kernels.load_candidates`."""
ONE_TILE = 8192
"""Most candidates per row that are kept in registers; more are re-read for each bit."""

Selected = tuple[Int32[Tensor, "n_rows k"], Float32[Tensor, "n_rows k"]]
"""Features and values."""


def empty(n_rows: int, k: int, device: torch.device) -> Selected:
    """Allocate k features per row."""
    return torch.empty(n_rows, k, dtype=torch.int32, device=device), torch.empty(n_rows, k, device=device)


def group_size(d_sae: int, k: int) -> int:
    """Features per group, chosen to balance the selection of groups and the selection within groups."""
    return min(256, max(16, power_of_2(math.isqrt(d_sae // k) + 1) // 2))


def group_maxima(
    scores: Float[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], group: int, absolute: bool
) -> Float32[Tensor, "n_rows n_groups"]:
    """The largest max(score + bias, 0) (or |score + bias|) of each group of neighbouring features."""
    n_rows, d_sae = scores.shape
    n_groups = ceil_div(d_sae, group)
    best = torch.empty(n_rows, n_groups, device=scores.device)
    block = max(1, 2048 // group)
    launch(
        kernels.group_max_kernel, (n_rows, ceil_div(n_groups, block)), scores, bias, best, d_sae, n_groups,
        GROUP=group, BLOCK_GROUPS=block, ABSOLUTE=absolute,
    )
    return best


def _select_rows(
    scores: Tensor, bias: Tensor | None, listed: Tensor | None, feature: Tensor, value: Tensor | None,
    n_candidates: int, source: int, group: int, absolute: bool,
) -> None:
    """Select from each row's candidates into `feature [n_rows, k]` and `value`."""
    n_rows, k = feature.shape
    one_tile = n_candidates <= ONE_TILE
    block = max(16, power_of_2(n_candidates)) if one_tile else 4096
    launch(
        kernels.select_rows_kernel, (n_rows,), scores, scores if bias is None else bias,
        feature if listed is None else listed, feature, scores if value is None else value,
        n_candidates, scores.shape[1], k, SOURCE=source, GROUP=group, BLOCK=block, ONE_TILE=one_tile,
        ABSOLUTE=absolute, HAS_BIAS=bias is not None, WRITE_VALUE=value is not None,
        num_warps=8 if block >= 4096 else 4,
    )


def select_topk(
    scores: Float[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], k: int, absolute: bool,
    out: Selected | None = None,
) -> Selected:
    """The k largest of each row, exact, features ascending, ties to the lower feature. Reads the scores once.

    The k largest are in the k groups with the largest maxima, so only these are read again.
    """
    n_rows, d_sae = scores.shape
    feature, value = out or empty(n_rows, k, scores.device)
    group = group_size(d_sae, k)
    if d_sae <= 1024 or 2 * k * group > d_sae:
        _select_rows(scores, bias, None, feature, value, d_sae, PLAIN, 1, absolute)
        return feature, value
    best = group_maxima(scores, bias, group, absolute)
    n_groups = best.shape[1]
    if max(n_groups, k * group) <= ONE_TILE:
        block_groups, block = power_of_2(n_groups), power_of_2(k * group)
        launch(
            topk_kernels.select_grouped_kernel, (n_rows,), scores, bias, best,
            torch.empty(n_rows, block // group, dtype=torch.int32, device=scores.device), feature, value, d_sae, n_groups,
            k, GROUP=group, BLOCK_GROUPS=block_groups, BLOCK=block, ABSOLUTE=absolute,
            num_warps=8 if block_groups + block > 6144 else min(4, max(1, max(block_groups, block) // 512)),
        )
        return feature, value
    groups = torch.empty_like(feature)
    _select_rows(best, None, None, groups, None, best.shape[1], PLAIN, 1, False)
    _select_rows(scores, bias, groups, feature, value, k * group, GROUPS, group, absolute)
    return feature, value


def select_listed(
    listed: Int32[Tensor, "n_rows n_listed"], scores: Float32[Tensor, "n_rows n_listed"], k: int, absolute: bool,
    out: Selected | None = None,
) -> Selected:
    """The k largest of each row's listed features, in the order of the list."""
    feature, value = out or empty(listed.shape[0], k, scores.device)
    _select_rows(scores, None, listed, feature, value, listed.shape[1], LISTED, 1, absolute)
    return feature, value


def select_rescored(
    listed: Int32[Tensor, "n_rows n_listed"], rough: Float32[Tensor, "n_rows n_listed"], x: Float32[Tensor, "n_rows d_in"],
    W: Float32[Tensor, "d_sae d_in"], bias: Float32[Tensor, " d_sae"], k: int, absolute: bool, out: Selected,
) -> None:
    """The k largest of each row's listed features, re-scored in fp32 where the rough scores are not accurate enough."""
    (n_rows, n_listed), d, (feature, value) = listed.shape, x.shape[1], out
    if max(d, n_listed) > 4096:
        exact = products.entry_dots(n_listed, listed.view(-1), x, W, bias=bias).view_as(listed)
        select_listed(listed, exact, k, absolute, out)
        return
    room = torch.empty(n_rows, 2 * n_listed, dtype=torch.int32, device=x.device)
    launch(
        topk_kernels.rescore_kernel, (n_rows,), listed, rough, x, W, bias, torch.empty_like(rough), room, feature, value,
        d, n_listed, k, **_scoring_tiles(d), BLOCK_LISTED=max(16, power_of_2(n_listed)), ABSOLUTE=absolute,
    )


def _scoring_tiles(d: int) -> dict[str, int]:
    """Tile constants of kernels that keep a row of x and score features with it."""
    block_a, block_b = two_blocks(d)
    return {
        "BLOCK_ENTRIES": 4, "BLOCK_A": block_a, "BLOCK_B": block_b, "num_warps": min(16, max(1, block_a // 256)),
    }


def score_entries(
    indptr: Int64[Tensor, " n_rows_plus_1"], feature: Int32[Tensor, " nnz"], x: Float32[Tensor, "n_rows d_in"],
    W: Float32[Tensor, "d_sae d_in"], bias: Float32[Tensor, " d_sae"],
) -> Float32[Tensor, " nnz"]:
    """`x[row] · W[feature] + bias[feature]` of the entries of a CSR code, in fp32."""
    (n_rows, d), scores = x.shape, torch.empty(feature.numel(), device=x.device)
    if d > 4096:
        ids = torch.arange(n_rows, device=x.device)
        row = ids.repeat_interleave(indptr.diff(), output_size=feature.numel())
        return products.entry_dots(row, feature, x, W, bias=bias)
    launch(
        topk_kernels.score_entries_kernel, (n_rows,), indptr, feature, x, W, bias, scores, d, **_scoring_tiles(d)
    )
    return scores


def compact_above(
    scores: Float32[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], threshold: Float32[Tensor, " n"],
    absolute: bool, *, margin: Float32[Tensor, " n_rows"] | None = None, inclusive: bool = False,
) -> tuple[Int64[Tensor, " nnz"], Int32[Tensor, " nnz"], Float32[Tensor, " nnz"]]:
    """Row, feature and score of all entries above a threshold (global or per feature), sorted by row and feature.

    With a margin, includes entries that may be active after re-scoring. Syncs with the device, because nnz depends on data.
    """
    n_rows, d_sae = scores.shape
    block = min(2048, max(16, power_of_2(d_sae)))
    n_tiles = ceil_div(d_sae, block)
    counts = torch.empty(n_rows, n_tiles, dtype=torch.int32, device=scores.device)
    constants = {
        "BLOCK": block, "ABSOLUTE": absolute, "PER_FEATURE": int(threshold.numel() > 1),
        "HAS_MARGIN": margin is not None, "INCLUSIVE": inclusive,
    }
    args = (scores, bias, threshold, scores if margin is None else margin)
    launch(kernels.count_above_kernel, (n_rows, n_tiles), *args, counts, d_sae, **constants)
    ends = counts.view(-1).cumsum(0, dtype=torch.int64)
    n_active = 0 if recording() else int(ends[-1])
    feature = torch.empty(n_active, dtype=torch.int32, device=scores.device)
    value = torch.empty(n_active, device=scores.device)
    if n_active > 0 or recording():
        launch(kernels.compact_above_kernel, (n_rows, n_tiles), *args, ends, feature, value, d_sae, **constants)
    ids = torch.arange(n_rows, device=scores.device)
    return ids.repeat_interleave(counts.sum(1), output_size=n_active), feature, value
