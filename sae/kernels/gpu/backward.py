"""Backward pass of a code on the GPU: all gradients from the code's entries sorted by feature."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu import weight_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2, warps_for

CHUNK_ENTRIES = 256
"""Most entries of a feature summed by one program; features with more are hot, and summed in parts, in order."""
FUSED_WIDTH = 4096
"""Widest row that the fused optimiser step can hold in one tile."""


@dataclass(frozen=True)
class FeaturePlan:
    """The entries of a code sorted by feature, then position. Computed once per backward pass."""

    order: Int64[Tensor, " nnz"]
    """Positions of the entries; padding comes last."""
    feature: Int[Tensor, " nnz"]
    """Feature of each sorted entry, in 16 bits if possible; d_sae for padding."""
    first: Int64[Tensor, " d_sae_plus_1"]
    """Start of each feature's entries."""
    chunk: int
    """Most entries summed by one program."""

    @property
    def n_windows(self) -> int:
        """Number of windows of `chunk` entries, at whose boundaries hot features are split."""
        return ceil_div(self.order.numel(), self.chunk)

    @property
    def counts(self) -> Int64[Tensor, " d_sae"]:
        """Rows in which each feature is active."""
        return self.first.diff()


def plan_by_feature(code: SparseCode, chunk: int = CHUNK_ENTRIES) -> FeaturePlan:
    """Sort a code by feature."""
    assert code.feature.numel() < 2**31, code.feature.numel()
    # radix sort needs half as many passes with 16 bits
    kind = torch.int16 if code.d_sae < 2**15 else torch.int32
    by_feature, order = torch.sort(torch.where(code.value != 0, code.feature, code.d_sae).to(kind), stable=True)
    ids = torch.arange(code.d_sae + 1, device=by_feature.device, dtype=kind)
    return FeaturePlan(order, by_feature, torch.searchsorted(by_feature, ids), chunk)


@dataclass(frozen=True)
class Stats:
    """Statistics of weight gradients for the optimiser, computed in the backward pass."""

    rows: Float32[Tensor, "4 d_sae"]
    """See `weight_kernels.store_stats`."""

    def squares(self, unit_rows: bool) -> Float32[Tensor, "2 d_sae"]:
        """Squared norms of both gradients per feature; the decoder's without its radial part for unit rows."""
        return self.rows[:2] if unit_rows else self.rows[1:3]

    @property
    def enc(self) -> Float32[Tensor, " d_sae"]:
        """‖dW_enc‖² of each feature."""
        return self.rows[1]

    def dec(self, unit_rows: bool) -> Float32[Tensor, " d_sae"]:
        """‖dW_dec‖² of each feature, without its radial part for unit rows."""
        return self.rows[0 if unit_rows else 2]

    @property
    def radial(self) -> Float32[Tensor, " d_sae"]:
        """The component of each row of dW_dec along its decoder row."""
        return self.rows[3]


@dataclass(frozen=True)
class CodeGrads:
    """Gradients of a code: feature-major weight gradients, and value gradients by position."""

    W_enc: Float32[Tensor, "d_sae d_in"] | None
    W_dec: Float32[Tensor, "d_sae d_out"] | None
    """None: deferred to the optimiser step."""
    b_enc: Float32[Tensor, " d_sae"]
    value: Float32[Tensor, " nnz"]
    stats: Stats | None = None
    """None: unknown."""


@dataclass(frozen=True)
class Left:
    """Gradients of some features' weights and biases, from a pass over these features only (AuxK)."""

    ids: Int64[Tensor, " n"]
    """Feature ids, unique; d_sae: none."""
    grads: CodeGrads

    def add_to(self, total: CodeGrads, W_dec: Float[Tensor, "d_sae d_out"]) -> None:
        """Add these to the gradients of all features, unless weight gradients are deferred (then the optimiser step does).

        Feature ids are unique, so each number is updated once and the result does not depend on an order.
        """
        mine = self.grads
        if total.W_enc is None or total.W_dec is None:
            total.b_enc.index_add_(0, self.ids, mine.b_enc)
            return
        assert mine.W_enc is not None and mine.W_dec is not None
        d_in, d_out = mine.W_enc.shape[1], mine.W_dec.shape[1]
        launch(
            kernels.add_left_kernel, (self.ids.numel(),), self.ids, mine.W_enc, mine.W_dec, mine.b_enc, total.W_enc,
            total.W_dec, total.b_enc, W_dec, total.b_enc if total.stats is None else total.stats.rows, total.b_enc.numel(),
            d_in, d_out, BLOCK_D=min(1024, max(16, power_of_2(max(d_in, d_out)))), HAS_STATS=total.stats is not None,
        )


@dataclass(frozen=True)
class Tiles:
    """Tiling of a gradient's columns, and how a program sums a tile."""

    width: int
    n: int
    entries: int
    """Rows gathered at once."""

    @classmethod
    def of(cls, d: int, dots: bool) -> "Tiles":
        """Tiles for rows of width d; `dots`: with dot products, which need more registers. Tuned on an H100."""
        wide = d >= 2048 and not dots
        width = min(512 if wide else 256, max(16, power_of_2(d)))
        return cls(width, ceil_div(d, width), 4 if wide or dots else 8)

    def launch(self, rows: Tensor) -> dict[str, int]:
        """Constants of `row_sums_kernel`."""
        # in bf16 a warp loads 256 columns at a time, or twice that in two loads
        return {
            "BLOCK_D": self.width, "BLOCK_ENTRIES": self.entries,
            "num_warps": max(1, self.width * rows.element_size() // (1024 if self.width > 256 else 512)),
        }


@dataclass(frozen=True)
class Work:
    """Arguments and launch parameters of the backward kernels."""

    plan: FeaturePlan
    code: SparseCode
    x: Float[Tensor, "n_rows d_in"]
    dy: Float[Tensor, "n_segments n_rows d_out"]
    """Gradient of the reconstruction per segment of features."""
    W_dec: Float[Tensor, "d_sae d_out"]
    extra: Float32[Tensor, " nnz"] | None
    """Gradient of the values from losses on them."""
    ends: Int64[Tensor, " n_ends"] | None
    """Ends of the segments of features; None: a single segment."""
    fused_width: int = FUSED_WIDTH

    @property
    def width(self) -> int:
        """Width of a tile that holds a whole row."""
        return power_of_2(max(self.x.shape[1], self.W_dec.shape[1], 16))

    @property
    def fused(self) -> bool:
        """Whether one program can hold whole rows, and compute the value gradients on the way."""
        return self.width <= self.fused_width

    @functools.cached_property
    def cut(self) -> tuple[Tensor, ...]:
        """Features, their starts, order, and rows: how the work is partitioned."""
        plan = self.plan
        return plan.feature, plan.first, plan.order, plan.order if self.code.k is not None else self.code.rows()

    def tensors(self, dvalue: Float32[Tensor, " nnz"]) -> tuple[Tensor, ...]:
        """Tensor arguments of `sum_entries`."""
        code = self.code
        return (
            *self.cut, code.value, code.value if self.extra is None else self.extra, dvalue,
            self.plan.first if self.ends is None else self.ends, self.x, self.dy, self.W_dec,
        )

    def sizes(self) -> tuple[int, ...]:
        """Numbers of windows, entries, entries per row, and segment ends."""
        n_ends = 0 if self.ends is None else self.ends.numel()
        return self.plan.n_windows, self.plan.order.numel(), self.code.k or 1, n_ends

    @property
    def dy_stride(self) -> int:
        """Offset from one segment's dy to the next."""
        return self.code.n_rows * self.W_dec.shape[1]

    def numbers(self) -> tuple[int, ...]:
        """Scalar arguments of `sum_entries`."""
        return *self.sizes(), self.dy_stride, self.code.d_sae, self.x.shape[1], self.W_dec.shape[1]

    @property
    def layout(self) -> dict[str, int]:
        """Constants that depend on the partitioning."""
        return {"CHUNK": self.plan.chunk, "FIXED_K": self.code.k is not None}

    def constants(self) -> dict[str, int]:
        """Tiles and warps of kernels that hold encoder and decoder rows at once."""
        return self.layout | {
            "HAS_EXTRA": self.extra is not None,
            "BLOCK_ENTRIES": max(1, min(4, 4096 // self.width)), "BLOCK_IN": max(16, power_of_2(self.x.shape[1])),
            "BLOCK_OUT": max(16, power_of_2(self.W_dec.shape[1])), "num_warps": warps_for(self.width, self.x),
        }

    def parts(self) -> list[Tensor]:
        """Allocate partial sums of hot features: gradients of encoder, decoder and bias."""
        sizes = self.x.shape[1], self.W_dec.shape[1], 1
        return [torch.empty(2 * self.plan.n_windows, d, device=self.x.device) for d in sizes]


def code_grads(work: Work) -> CodeGrads:
    """Value, weight and bias gradients of a code, and their statistics."""
    (d_sae, d_out), d_in, plan, device = work.W_dec.shape, work.x.shape[1], work.plan, work.x.device
    dW_enc, dW_dec = torch.empty(d_sae, d_in, device=device), torch.empty(d_sae, d_out, device=device)
    db_enc, parts, n_entries = torch.empty(d_sae, device=device), work.parts(), plan.order.numel()
    enc, dec = Tiles.of(d_in, dots=False), Tiles.of(d_out, dots=True)
    of_tiles = torch.empty(enc.n + 3 * dec.n, d_sae, device=device)
    dots, dvalue = torch.empty(dec.n, n_entries, device=device), torch.empty_like(work.code.value)
    _row_sums(work, dec, work.code.value, work.dy, dW_dec, of_tiles[enc.n :], parts[1], dots=dots)
    launch(
        kernels.sum_dots_kernel, (ceil_div(n_entries, 1024),), dots, work.code.value, dvalue, n_entries, dec.n, BLOCK=1024
    )
    _row_sums(work, enc, dvalue, work.x, dW_enc, of_tiles, parts[0], sums=(db_enc, parts[2]))
    launch(
        kernels.sum_parts_kernel, (plan.n_windows, max(enc.n, dec.n)), plan.feature, plan.first, *parts, work.W_dec,
        dW_enc, dW_dec, db_enc, of_tiles, plan.n_windows, n_entries, enc.n, dec.n, d_sae, d_in, d_out, CHUNK=plan.chunk,
        BLOCK_IN=enc.width, BLOCK_OUT=dec.width, num_warps=2,
    )
    stats = Stats(torch.empty(4, d_sae, device=device))
    launch(kernels.sum_stats_kernel, (ceil_div(d_sae, 256),), of_tiles, stats.rows, enc.n, dec.n, d_sae, BLOCK=256)
    return CodeGrads(dW_enc, dW_dec, db_enc, dvalue, stats)


def _row_sums(
    work: Work, tiles: Tiles, weight: Float32[Tensor, " nnz"], rows: Float[Tensor, "*n_segments n_rows d"], out: Tensor,
    stats: Tensor, part: Tensor, *, dots: Tensor | None = None, sums: tuple[Tensor, Tensor] | None = None,
) -> None:
    """`Σ weight · rows[row]` per feature; `dots`: also dot products with W_dec; `sums`: also Σ weight."""
    d_sae, d = out.shape
    extra = work.extra if dots is not None else None
    n_windows, n_entries, k, n_ends = work.sizes()
    launch(
        kernels.row_sums_kernel, (2 * n_windows + d_sae, tiles.n), *work.cut, weight, weight if extra is None else extra,
        work.plan.first if work.ends is None else work.ends, rows, work.W_dec, out, out if dots is None else dots,
        out if sums is None else sums[0], stats, part, part if sums is None else sums[1], n_windows, n_entries, k,
        n_ends if dots is not None else 0, work.dy_stride, tiles.n, d_sae, d, **work.layout, **tiles.launch(rows),
        HAS_DOT=dots is not None, HAS_EXTRA=extra is not None, HAS_SUM=sums is not None,
    )
