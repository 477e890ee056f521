"""The backward pass of a code on the GPU: every gradient from one plan, the code's entries sorted by feature."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu import weight_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2, two_blocks, warps_for
from sae.kernels.gpu.products import entry_dots

CHUNK_ENTRIES = 256
"""Entries of one feature that one program sums; a feature with more is hot, and its pieces are summed in order."""
FUSED_WIDTH = 4096
"""Widest row that one program holds whole; wider ones are cut into tiles, and value gradients come first."""
SUM_WIDTH = 256
"""Columns of the encoder's gradients that one program sums: of bf16 rows so many fit into cache for all features."""


@dataclass(frozen=True)
class FeaturePlan:
    """The entries of a code sorted by feature, then position. Made once per backward pass."""

    order: Int64[Tensor, " nnz"]
    """Positions of the entries; padding comes last."""
    feature: Int32[Tensor, " nnz"]
    """Feature of each entry in that order; d_sae for padding."""
    first: Int64[Tensor, " d_sae_plus_1"]
    """Where each feature's entries begin."""
    chunk: int
    """Entries that one program sums."""

    @property
    def n_windows(self) -> int:
        """Stretches of `chunk` entries: hot features are cut where these end."""
        return ceil_div(self.order.numel(), self.chunk)

    @property
    def counts(self) -> Int64[Tensor, " d_sae"]:
        """Rows in which each feature is active."""
        return self.first.diff()


def plan_by_feature(code: SparseCode, chunk: int = CHUNK_ENTRIES) -> FeaturePlan:
    """Sort a code by feature."""
    assert code.feature.numel() < 2**31, code.feature.numel()
    by_feature, order = torch.sort(torch.where(code.value != 0, code.feature, code.d_sae), stable=True)
    ids = torch.arange(code.d_sae + 1, device=by_feature.device, dtype=torch.int32)
    return FeaturePlan(order, by_feature, torch.searchsorted(by_feature, ids), chunk)


@dataclass(frozen=True)
class Stats:
    """What the optimiser wants to know of weight gradients, left by the pass that made them."""

    rows: Float32[Tensor, "n_tiles_plus_3 d_sae"]
    """See `sae.kernels.gpu.weight_kernels`."""

    def squares(self, unit_rows: bool) -> Float32[Tensor, "n_tiles_plus_1 d_sae"]:
        """Parts of the squared norm of both gradients, that of the decoder without its radial part for unit rows."""
        return self.rows[:-2] if unit_rows else self.rows[1:-1]

    def enc(self) -> Float32[Tensor, " d_sae"]:
        """‖dW_enc‖² of each feature."""
        return self.rows[1:-2].sum(0)

    def dec(self, unit_rows: bool) -> Float32[Tensor, " d_sae"]:
        """‖dW_dec‖² of each feature."""
        return self.rows[0 if unit_rows else -2]

    @property
    def radial(self) -> Float32[Tensor, " d_sae"]:
        """The part of each row of dW_dec along its decoder row."""
        return self.rows[-1]


@dataclass(frozen=True)
class CodeGrads:
    """What the backward pass of a code gives: feature-major weight gradients, and value gradients by position."""

    W_enc: Float32[Tensor, "d_sae d_in"] | None
    W_dec: Float32[Tensor, "d_sae d_out"] | None
    """None: left to the optimiser step."""
    b_enc: Float32[Tensor, " d_sae"]
    value: Float32[Tensor, " nnz"]
    stats: Stats | None = None
    """None: not known."""


@dataclass(frozen=True)
class Left:
    """Gradients of some features' weights and biases, by a pass over these alone (AuxK)."""

    ids: Int64[Tensor, " n"]
    """No feature twice; d_sae: none."""
    grads: CodeGrads

    def add_to(self, total: CodeGrads, W_dec: Float[Tensor, "d_sae d_out"]) -> None:
        """Add them to those of all features, where these are made (the optimiser step adds to those left to it).

        Each feature is there once, so every number is added to once: the bits do not depend on an order.
        """
        mine, d_sae = self.grads, total.b_enc.numel()
        if total.W_enc is None or total.W_dec is None:
            total.b_enc.index_add_(0, self.ids, mine.b_enc)
            return
        assert mine.W_enc is not None and mine.W_dec is not None
        d_in, d_out = mine.W_enc.shape[1], mine.W_dec.shape[1]
        stats = None if total.stats is None else total.stats.rows
        launch(
            kernels.add_left_kernel, (self.ids.numel(),), self.ids, mine.W_enc, mine.W_dec, mine.b_enc, total.W_enc,
            total.W_dec, total.b_enc, W_dec, total.b_enc if stats is None else stats, sum_tiles(d_in), d_sae, d_in, d_out,
            BLOCK_D=min(sum_width(d_in), 256), TILE=sum_width(d_in), HAS_STATS=stats is not None,
        )


def sum_width(d: int) -> int:
    """Columns of a tile of the encoder's gradients."""
    return min(SUM_WIDTH, max(16, power_of_2(d)))


def sum_tiles(d: int) -> int:
    """And how many there are."""
    return ceil_div(d, sum_width(d))


@dataclass(frozen=True)
class Work:
    """What the kernels of the backward pass read, and how they are launched."""

    plan: FeaturePlan
    code: SparseCode
    x: Float[Tensor, "n_rows d_in"]
    dy: Float[Tensor, "n_segments n_rows d_out"]
    """A feature's dy is that of its segment."""
    W_dec: Float[Tensor, "d_sae d_out"]
    extra: Float32[Tensor, " nnz"] | None
    """The gradient that reaches the values from elsewhere."""
    ends: Int64[Tensor, " n_ends"] | None
    """Where segments of features end; None: there is one."""
    fused_width: int = FUSED_WIDTH

    @property
    def width(self) -> int:
        """Of a tile that holds a whole row."""
        return power_of_2(max(self.x.shape[1], self.W_dec.shape[1], 16))

    @property
    def fused(self) -> bool:
        """One program holds whole rows, and makes the value gradients on its way."""
        return self.width <= self.fused_width

    @functools.cached_property
    def cut(self) -> tuple[Tensor, ...]:
        """Features, where they begin, order, and rows: how the work is cut."""
        plan = self.plan
        return plan.feature, plan.first, plan.order, plan.order if self.code.k is not None else self.code.rows()

    def tensors(self, dvalue: Float32[Tensor, " nnz"]) -> tuple[Tensor, ...]:
        """The arguments of `sum_entries` that are tensors, after the plan's."""
        code = self.code
        return (
            *self.cut, code.value, code.value if self.extra is None else self.extra, dvalue,
            self.plan.first if self.ends is None else self.ends, self.x, self.dy, self.W_dec,
        )

    def sizes(self) -> tuple[int, ...]:
        """Of the work: windows, entries, entries of a row, and ends of segments."""
        n_ends = 0 if self.ends is None else self.ends.numel()
        return self.plan.n_windows, self.plan.order.numel(), self.code.k or 1, n_ends

    @property
    def dy_stride(self) -> int:
        """From one segment's dy to the next."""
        return self.code.n_rows * self.W_dec.shape[1]

    def numbers(self) -> tuple[int, ...]:
        """The arguments of `sum_entries` that are numbers."""
        return *self.sizes(), self.dy_stride, self.code.d_sae, self.x.shape[1], self.W_dec.shape[1]

    @property
    def layout(self) -> dict[str, int]:
        """The constants that follow from how the work is cut."""
        return {"CHUNK": self.plan.chunk, "FIXED_K": self.code.k is not None}

    def constants(self) -> dict[str, int]:
        """Tiles and warps of the kernels that hold rows of encoder and decoder at once."""
        return self.layout | {
            "HAS_EXTRA": self.extra is not None,
            "BLOCK_ENTRIES": max(1, min(4, 4096 // self.width)), "BLOCK_IN": max(16, power_of_2(self.x.shape[1])),
            "BLOCK_OUT": max(16, power_of_2(self.W_dec.shape[1])), "num_warps": warps_for(self.width, self.x),
        }

    def parts(self) -> list[Tensor]:
        """Room for the pieces of hot features: gradients of encoder, decoder and bias."""
        sizes = self.x.shape[1], self.W_dec.shape[1], 1
        return [torch.empty(2 * self.plan.n_windows, d, device=self.x.device) for d in sizes]


def code_grads(work: Work) -> CodeGrads:
    """Value, weight and bias gradients of a code; with statistics where rows are held whole."""
    (d_sae, d_out), d_in, plan, device = work.W_dec.shape, work.x.shape[1], work.plan, work.x.device
    dW_enc, dW_dec = torch.empty(d_sae, d_in, device=device), torch.empty(d_sae, d_out, device=device)
    db_enc, parts, n_tiles = torch.empty(d_sae, device=device), work.parts(), sum_tiles(d_in)
    stats = Stats(torch.empty(n_tiles + 3, d_sae, device=device)) if work.fused else None
    if stats is not None:
        dvalue = _decoder_grads(work, dW_dec, stats, parts[1])
    else:
        dvalue = value_grads(work)
        _row_sums(work, work.code.value, work.dy, dW_dec, None, None, parts[1:])
    _row_sums(work, dvalue, work.x, dW_enc, db_enc, stats, parts[::2])
    hot = plan.feature, plan.first, *parts, dW_enc, dW_dec, db_enc
    block = sum_width(d_in)
    launch(
        kernels.sum_parts_kernel, (plan.n_windows, ceil_div(max(d_in, d_out), block)), *hot,
        db_enc if stats is None else stats.rows, plan.n_windows, plan.order.numel(), d_sae, d_in, d_out,
        CHUNK=plan.chunk, BLOCK_D=block, HAS_STATS=stats is not None,
    )
    if stats is not None:
        launch(
            kernels.hot_decoder_stats_kernel, (plan.n_windows,), plan.feature, plan.first, dW_dec, work.W_dec, stats.rows,
            plan.n_windows, plan.order.numel(), n_tiles, d_sae, d_out, CHUNK=plan.chunk,
            BLOCK_D=min(1024, max(16, power_of_2(d_out))),
        )
    return CodeGrads(dW_enc, dW_dec, db_enc, dvalue, stats)


def _decoder_grads(work: Work, dW_dec: Tensor, stats: Stats, parts: Tensor) -> Float32[Tensor, " nnz"]:
    """The decoder's gradients and statistics, and those of the values, of which padding passes none on."""
    (d_sae, d), code = work.W_dec.shape, work.code
    dvalue = torch.zeros_like(code.value)
    block_a, block_b = two_blocks(d)
    launch(
        kernels.decoder_grads_kernel, (2 * work.plan.n_windows + d_sae,), *work.cut, code.value,
        code.value if work.extra is None else work.extra, dvalue, work.plan.first if work.ends is None else work.ends,
        work.dy, work.W_dec, dW_dec, stats.rows, parts, *work.sizes(), work.dy_stride, stats.rows.shape[0] - 3, d_sae, d,
        **work.layout, **DECODER_TILES(block_a, work.dy), BLOCK_A=block_a, BLOCK_B=block_b,
        HAS_EXTRA=work.extra is not None,
    )
    return dvalue


def DECODER_TILES(width: int, rows: Tensor) -> dict[str, int]:
    """TUNE"""
    return {"BLOCK_ENTRIES": 2, "num_warps": max(1, min(8, warps_for(width, rows) // 2))}


def _row_sums(
    work: Work, weight: Float32[Tensor, " nnz"], rows: Float[Tensor, "*n_segments n_rows d"], out: Tensor,
    sums: Tensor | None, stats: Stats | None, parts: list[Tensor],
) -> None:
    """`Σ weight · rows[row]` of each feature and, with `sums`, Σ weight; with `stats`, the encoder's squares."""
    d_sae, d = out.shape
    block, (part, part_sum) = sum_width(d), (parts if len(parts) > 1 else parts * 2)
    n_segments = rows.shape[0] if rows.dim() == 3 else 1
    n_windows, n_entries, k, n_ends = work.sizes()
    launch(
        kernels.row_sums_kernel, (2 * n_windows + d_sae, ceil_div(d, block)), *work.cut, weight,
        work.plan.first if work.ends is None else work.ends, rows, out, out if sums is None else sums,
        out if stats is None else stats.rows[1], part, part_sum, n_windows, n_entries, k, n_ends if n_segments > 1 else 0,
        work.dy_stride, d_sae, d, **work.layout, **SUM_TILES(block, rows), BLOCK_D=block, HAS_SUM=sums is not None,
        HAS_SQUARE=stats is not None,
    )


def SUM_TILES(width: int, rows: Tensor) -> dict[str, int]:
    """TUNE"""
    return {"BLOCK_ENTRIES": 8, "num_warps": warps_for(width, rows)}


def value_grads(work: Work) -> Float32[Tensor, " nnz"]:
    """`⟨dy, W_dec[feature]⟩ + extra` of each entry; padding passes none on."""
    code, ends = work.code, work.ends
    row: Tensor | int = code.rows() if code.k is None or ends is not None else code.k
    if ends is not None:
        row = torch.bucketize(code.feature, ends, right=True) * code.n_rows + row
    dots = entry_dots(row, code.feature, work.dy.view(-1, work.dy.shape[2]), work.W_dec, extra=work.extra)
    return torch.where(code.value != 0, dots, 0.0)
