"""The backward pass of a code on the GPU: every gradient from one plan, the code's entries sorted by feature."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu import weight_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2, warps_for

CHUNK_ENTRIES = 256
"""Entries of one feature that one program sums; a feature with more is hot, and its pieces are summed in order."""
FUSED_WIDTH = 4096
"""Widest row that the fused optimiser step holds whole."""


@dataclass(frozen=True)
class FeaturePlan:
    """The entries of a code sorted by feature, then position. Made once per backward pass."""

    order: Int64[Tensor, " nnz"]
    """Positions of the entries; padding comes last."""
    feature: Int[Tensor, " nnz"]
    """Feature of each entry in that order, in 16 bits if they suffice; d_sae for padding."""
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
    # of 16 bits half as many passes are sorted
    kind = torch.int16 if code.d_sae < 2**15 else torch.int32
    by_feature, order = torch.sort(torch.where(code.value != 0, code.feature, code.d_sae).to(kind), stable=True)
    ids = torch.arange(code.d_sae + 1, device=by_feature.device, dtype=kind)
    return FeaturePlan(order, by_feature, torch.searchsorted(by_feature, ids), chunk)


@dataclass(frozen=True)
class Stats:
    """What the optimiser wants to know of weight gradients, left by the pass that made them."""

    rows: Float32[Tensor, "4 d_sae"]
    """See `weight_kernels.store_stats`."""

    def squares(self, unit_rows: bool) -> Float32[Tensor, "2 d_sae"]:
        """Squared norms of both gradients by feature, of the decoder's without its radial part for unit rows."""
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
        """The part of each row of dW_dec along its decoder row."""
        return self.rows[3]


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
    """How the columns of a gradient are cut into tiles, and how a program sums one."""

    width: int
    n: int
    entries: int
    """Rows that are gathered at once."""

    @classmethod
    def of(cls, d: int, dots: bool) -> "Tiles":
        """Of rows of d; with dot products, which keep more numbers. As measured on an H100."""
        wide = d >= 2048 and not dots
        width = min(512 if wide else 256, max(16, power_of_2(d)))
        return cls(width, ceil_div(d, width), 4 if wide or dots else 8)

    def launch(self, rows: Tensor) -> dict[str, int]:
        """Constants of `row_sums_kernel`."""
        # of bf16 a warp loads 256 columns at a time, or twice that in two loads
        return {
            "BLOCK_D": self.width, "BLOCK_ENTRIES": self.entries,
            "num_warps": max(1, self.width * rows.element_size() // (1024 if self.width > 256 else 512)),
        }


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
    """`Σ weight · rows[row]` of each feature; with `dots` of the decoder, with `sums` also Σ weight (and of pieces)."""
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
