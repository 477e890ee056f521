"""How the Triton kernels are launched: shapes, tiles, warps. One function per operation, tensors in, tensors out.

Every launch goes through `launch`, so that the ahead-of-time check (`sae.kernels.gpu_aot`) can record and compile
exactly what would run.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from sae.kernels import gpu_kernels as kernels
from sae.kernels import gpu_select_kernels as select_kernels

PLAIN, GROUPS, LISTED = 0, 1, 2
"""Where a row's candidates lie: see `gpu_select_kernels.load_candidates`."""
ONE_TILE = 8192
"""Candidates of a row that are selected from within registers; more are read again for each bit."""
CHUNK_ENTRIES = 256
"""Entries of one feature that one program sums; a feature with more is hot, and its chunks are summed in order."""
FUSED_WIDTH = 4096
"""Widest row that the backward pass holds whole; wider ones are cut into tiles, and value gradients come first."""


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int


_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches instead of running them; what the launching functions return is then undefined."""
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run a kernel on the device of its first argument; an empty grid is no launch."""
    assert all(size < 65536 for size in grid[1:]), grid
    if 0 in grid:
        return
    launches = _recording.get()
    if launches is not None:
        launches.append(Launch(kernel, args, constants, num_warps))
        return
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, num_warps=num_warps, enable_fp_fusion=True, **constants)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def tile_width(d: int, widest: int = 512) -> int:
    """A power of two that divides rows of d into few tiles with little idle width."""
    widths = [w for w in (128, 256, 512, 1024) if w <= widest]
    # a tile costs about as much as 64 idle columns
    return min(widths, key=lambda w: (ceil_div(d, w) * (w + 64), w)) if d > 64 else max(16, power_of_2(d))


def warps_for(width: int, rows: Tensor) -> int:
    """So many warps that a row is one load of 16 bytes per thread: sums over several rows then stay in each thread."""
    return min(16, max(1, width * rows.element_size() // 512))


# -- selection --------------------------------------------------------------------------------------------------------


def group_size(d_sae: int, k: int) -> int:
    """Features per group that make the two short selections (of groups, of features in them) about equally long."""
    return min(256, max(16, power_of_2(math.isqrt(d_sae // k))))


def group_maxima(
    scores: Float32[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], group: int, absolute: bool
) -> Float32[Tensor, "n_rows n_groups"]:
    """The largest max(score + bias, 0) (or |score + bias|) of each group of neighbouring features."""
    n_rows, d_sae = scores.shape
    n_groups = ceil_div(d_sae, group)
    best = torch.empty(n_rows, n_groups, device=scores.device)
    block = max(1, 2048 // group)
    launch(
        select_kernels.group_max_kernel, (n_rows, ceil_div(n_groups, block)), scores, bias, best, d_sae, n_groups,
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
        select_kernels.select_rows_kernel, (n_rows,), scores, scores if bias is None else bias,
        feature if listed is None else listed, feature, scores if value is None else value,
        n_candidates, scores.shape[1], k, SOURCE=source, GROUP=group, BLOCK=block, ONE_TILE=one_tile,
        ABSOLUTE=absolute, HAS_BIAS=bias is not None, WRITE_VALUE=value is not None,
        num_warps=8 if block >= 4096 else 4,
    )


def select_topk(
    scores: Float32[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], k: int, absolute: bool
) -> tuple[Int32[Tensor, "n_rows k"], Float32[Tensor, "n_rows k"]]:
    """The k largest of each row, exactly, features ascending; among equals the lower feature. Reads the scores once.

    The k largest lie in the k groups with the largest maxima, so only these are looked at again.
    """
    n_rows, d_sae = scores.shape
    feature = torch.empty(n_rows, k, dtype=torch.int32, device=scores.device)
    value = torch.empty(n_rows, k, device=scores.device)
    group = group_size(d_sae, k)
    if d_sae <= 1024 or 2 * k * group > d_sae:
        _select_rows(scores, bias, None, feature, value, d_sae, PLAIN, 1, absolute)
        return feature, value
    best = group_maxima(scores, bias, group, absolute)
    groups = torch.empty_like(feature)
    _select_rows(best, None, None, groups, None, best.shape[1], PLAIN, 1, False)
    _select_rows(scores, bias, groups, feature, value, k * group, GROUPS, group, absolute)
    return feature, value


def select_listed(
    listed: Int32[Tensor, "n_rows n_listed"], scores: Float32[Tensor, "n_rows n_listed"], k: int, absolute: bool
) -> tuple[Int32[Tensor, "n_rows k"], Float32[Tensor, "n_rows k"]]:
    """The k largest of each row's listed features, in the order of the list."""
    feature = torch.empty(listed.shape[0], k, dtype=torch.int32, device=scores.device)
    value = torch.empty(listed.shape[0], k, device=scores.device)
    _select_rows(scores, None, listed, feature, value, listed.shape[1], LISTED, 1, absolute)
    return feature, value


def compact_above(
    scores: Float32[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], threshold: Float32[Tensor, " n"],
    absolute: bool, *, margin: Float32[Tensor, " n_rows"] | None = None, inclusive: bool = False,
) -> tuple[Int64[Tensor, " nnz"], Int32[Tensor, " nnz"], Float32[Tensor, " nnz"]]:
    """Row, feature and score of all that is active above a threshold (one, or one per feature), by row and feature.

    With a margin, whatever may be active once it is scored more precisely. Waits for the device: nnz is data.
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
    launch(select_kernels.count_above_kernel, (n_rows, n_tiles), *args, counts, d_sae, **constants)
    ends = counts.view(-1).cumsum(0, dtype=torch.int64)
    n_active = 0 if _recording.get() is not None else int(ends[-1])
    feature = torch.empty(n_active, dtype=torch.int32, device=scores.device)
    value = torch.empty(n_active, device=scores.device)
    if n_active > 0 or _recording.get() is not None:
        launch(select_kernels.compact_above_kernel, (n_rows, n_tiles), *args, ends, feature, value, d_sae, **constants)
    ids = torch.arange(n_rows, device=scores.device)
    return ids.repeat_interleave(counts.sum(1), output_size=n_active), feature, value


# -- sparse products --------------------------------------------------------------------------------------------------


def entry_dots(
    row: Int[Tensor, " nnz"], feature: Int[Tensor, " nnz"], rows: Float[Tensor, "n_rows d"],
    weights: Float[Tensor, "d_sae d"], *, bias: Float32[Tensor, " d_sae"] | None = None,
    extra: Float32[Tensor, " nnz"] | None = None,
) -> Float32[Tensor, " nnz"]:
    """`rows[row] · weights[feature]` of each entry in fp32, plus its feature's bias or its own extra."""
    dots = torch.empty(row.numel(), device=rows.device)
    launch(
        kernels.entry_dots_kernel, (ceil_div(row.numel(), 8),), row, feature, rows, weights,
        rows if bias is None else bias, rows if extra is None else extra, dots, row.numel(), weights.shape[0],
        weights.shape[1], BLOCK_ENTRIES=8, BLOCK_D=tile_width(weights.shape[1], 256), HAS_BIAS=bias is not None,
        HAS_EXTRA=extra is not None,
    )
    return dots


def decode(
    feature: Int32[Tensor, " nnz"], value: Float[Tensor, " nnz"], bounds: Int64[Tensor, "n_rows n_prefixes_plus_1"],
    weights: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · weights[feature] (+ bias)` of each row up to each of its bounds."""
    n_rows, n_prefixes, d = bounds.shape[0], bounds.shape[1] - 1, weights.shape[1]
    out = torch.empty(n_prefixes, n_rows, d, device=weights.device)
    block = tile_width(d)
    launch(
        kernels.decode_kernel, (n_rows, ceil_div(d, block)), feature, value, bounds, weights,
        weights if bias is None else bias, out, d, n_rows * d, n_prefixes, BLOCK_ENTRIES=8, BLOCK_D=block,
        HAS_BIAS=bias is not None, num_warps=warps_for(block, weights),
    )
    return out


# -- backward ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturePlan:
    """The entries of a code sorted by feature, then position, cut into items of work. Made once per backward pass."""

    order: Int64[Tensor, " nnz"]
    """Positions of the entries; padding comes last."""
    feature: Int32[Tensor, " nnz"]
    """Feature of each entry in that order; d_sae for padding."""
    entry_first: Int64[Tensor, " d_sae_plus_1"]
    """Where each feature's entries begin."""
    item_feature: Int32[Tensor, " n_items"]
    """Feature of each item of work; d_sae where there is none (n_items is a bound that needs no look at the data)."""
    item_first: Int64[Tensor, " d_sae_plus_1"]
    part_first: Int64[Tensor, " d_sae_plus_1"]
    """Where the parts of each hot feature begin."""
    hot: Int32[Tensor, " n_hot"]
    """The hot features, then d_sae."""
    n_parts: int
    """Most parts that hot features can have."""
    chunk: int
    """Entries per item."""

    @property
    def counts(self) -> Int64[Tensor, " d_sae"]:
        """Rows in which each feature is active."""
        return self.entry_first.diff()


def _starts(lengths: Int64[Tensor, " n"]) -> Int64[Tensor, " n_plus_1"]:
    """Where runs of these lengths begin, and where the last one ends."""
    starts = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=starts[1:])
    return starts


def plan_by_feature(
    feature: Int32[Tensor, " nnz"], value: Float32[Tensor, " nnz"], d_sae: int, chunk: int = CHUNK_ENTRIES
) -> FeaturePlan:
    """Sort a code by feature. Sizes are bounds, so that nothing waits for the device."""
    nnz, device = feature.numel(), feature.device
    ids = torch.arange(d_sae + 1, device=device, dtype=torch.int32)
    by_feature, order = torch.sort(torch.where(value != 0, feature, d_sae), stable=True)
    entry_first = torch.searchsorted(by_feature, ids)
    n_items_of = (entry_first.diff() + chunk - 1).div(chunk, rounding_mode="floor").clamp_min(1)
    item_first = _starts(n_items_of)
    items = torch.arange(d_sae + nnz // chunk, device=device)
    item_feature = (torch.searchsorted(item_first, items, right=True) - 1).to(torch.int32)
    is_hot = n_items_of > 1
    n_hot = nnz // chunk
    place = torch.where(is_hot, is_hot.cumsum(0) - 1, n_hot)
    hot = torch.full((n_hot + 1,), d_sae, dtype=torch.int32, device=device).scatter_(0, place, ids[:-1])
    part_first = _starts(torch.where(is_hot, n_items_of, 0))
    return FeaturePlan(
        order, by_feature, entry_first, item_feature, item_first, part_first, hot[:n_hot], 2 * n_hot, chunk
    )


@dataclass(frozen=True)
class CodeGrads:
    """What the backward pass of a code gives: feature-major weight gradients, and value gradients by position."""

    W_enc: Float32[Tensor, "d_sae d_in"]
    W_dec: Float32[Tensor, "d_sae d_out"]
    b_enc: Float32[Tensor, " d_sae"]
    value: Float32[Tensor, " nnz"]


def code_grads(
    plan: FeaturePlan, row: Int64[Tensor, " nnz"], dy_row: Int64[Tensor, " nnz"], value: Float32[Tensor, " nnz"],
    extra: Float32[Tensor, " nnz"] | None, x: Float[Tensor, "n_rows d_in"], dy: Float[Tensor, "n_dy_rows d_out"],
    W_dec: Float[Tensor, "d_sae d_out"], *, fused_width: int = FUSED_WIDTH,
) -> CodeGrads:
    """Value, weight and bias gradients from one plan.

    `row` and `dy_row` say per entry which rows of x and dy are its own; `extra` is the gradient that reaches the values
    from elsewhere. All entry arguments are by position.
    """
    (d_sae, d_out), d_in, device = W_dec.shape, x.shape[1], x.device
    row, dy_row, value = (t[plan.order] for t in (row.to(torch.int32), dy_row.to(torch.int32), value))
    extra = torch.zeros_like(value) if extra is None else extra[plan.order]
    width = power_of_2(max(d_in, d_out, 16))
    fused = width <= fused_width
    if fused:
        block_in, block_out = max(16, power_of_2(d_in)), max(16, power_of_2(d_out))
        n_tiles, entries, warps = 1, max(1, min(4, 4096 // width)), warps_for(width, x)
    else:
        extra = entry_dots(dy_row, plan.feature, dy, W_dec, extra=extra)
        block_in = block_out = 512
        n_tiles, entries, warps = ceil_div(max(d_in, d_out), 512), 8, 4
    grads = CodeGrads(
        torch.empty(d_sae, d_in, device=device), torch.empty(d_sae, d_out, device=device),
        torch.empty(d_sae, device=device), torch.empty_like(value),
    )
    dvalue = torch.empty_like(value) if fused else extra
    parts = [torch.empty(max(1, plan.n_parts), d, device=device) for d in (d_in, d_out, 1)]
    launch(
        kernels.weight_grads_kernel, (plan.item_feature.numel(), n_tiles),
        plan.item_feature, plan.item_first, plan.part_first, plan.entry_first, row, dy_row, value, extra, dvalue, x,
        dy, W_dec, grads.W_enc, grads.W_dec, grads.b_enc, *parts, d_sae, d_in, d_out, CHUNK=plan.chunk,
        BLOCK_ENTRIES=entries, BLOCK_IN=block_in, BLOCK_OUT=block_out, FUSED=fused, num_warps=warps,
    )
    for part, out in zip(parts, (grads.W_enc, grads.W_dec, grads.b_enc[:, None]), strict=True):
        block = tile_width(out.shape[1])
        launch(
            kernels.sum_parts_kernel, (plan.hot.numel(), ceil_div(out.shape[1], block)), plan.hot, plan.part_first,
            part, out, d_sae, out.shape[1], BLOCK_D=block,
        )
    # padding passes no gradient on
    grads.value.scatter_(0, plan.order, torch.where(value != 0, dvalue, 0.0))
    return grads
