"""The backward pass of a code on the GPU: every gradient from one plan, the code's entries sorted by feature."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu import backward_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2, tile_width, warps_for
from sae.kernels.gpu.products import entry_dots

CHUNK_ENTRIES = 256
"""Entries of one feature that one program sums; a feature with more is hot, and its pieces are summed in order."""
FUSED_WIDTH = 4096
"""Widest row that one program holds whole; wider ones are cut into tiles, and value gradients come first."""


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
class CodeGrads:
    """What the backward pass of a code gives: feature-major weight gradients, and value gradients by position."""

    W_enc: Float32[Tensor, "d_sae d_in"] | None
    W_dec: Float32[Tensor, "d_sae d_out"] | None
    """None: left to the optimiser step."""
    b_enc: Float32[Tensor, " d_sae"]
    value: Float32[Tensor, " nnz"]


@dataclass(frozen=True)
class Left:
    """Gradients of some features' weights and biases, by a pass over these alone (AuxK)."""

    ids: Int64[Tensor, " n"]
    grads: CodeGrads

    def add_to(self, total: CodeGrads) -> None:
        """Add them to those of all features, where these are made."""
        for name in ("W_enc", "W_dec"):
            # None: left to the optimiser step, and so is this
            if (all_of_them := getattr(total, name)) is not None:
                # each id is there once, so every number is added to once: the bits do not depend on an order
                all_of_them.index_add_(0, self.ids, getattr(self.grads, name))
        total.b_enc.index_add_(0, self.ids, self.grads.b_enc)


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

    def tensors(self, dvalue: Float32[Tensor, " nnz"]) -> tuple[Tensor, ...]:
        """The arguments of `sum_entries` that are tensors, after the plan's."""
        code, plan = self.code, self.plan
        return (
            plan.feature, plan.first, plan.order, plan.order if code.k is not None else code.rows(), code.value,
            code.value if self.extra is None else self.extra, dvalue, plan.first if self.ends is None else self.ends,
            self.x, self.dy, self.W_dec,
        )

    def numbers(self) -> tuple[int, ...]:
        """And those that are numbers."""
        return (
            self.plan.n_windows, self.plan.order.numel(), self.code.k or 1, 0 if self.ends is None else self.ends.numel(),
            self.code.n_rows * self.W_dec.shape[1], self.code.d_sae, self.x.shape[1], self.W_dec.shape[1],
        )

    def constants(self) -> dict[str, int]:
        """Tiles and warps."""
        common = {
            "CHUNK": self.plan.chunk, "FIXED_K": self.code.k is not None, "HAS_EXTRA": self.extra is not None,
        }
        if not self.fused:
            return common | {"BLOCK_ENTRIES": 8, "BLOCK_IN": 512, "BLOCK_OUT": 512, "num_warps": 4}
        return common | {
            "BLOCK_ENTRIES": max(1, min(4, 4096 // self.width)), "BLOCK_IN": max(16, power_of_2(self.x.shape[1])),
            "BLOCK_OUT": max(16, power_of_2(self.W_dec.shape[1])), "num_warps": warps_for(self.width, self.x),
        }

    def parts(self) -> list[Tensor]:
        """Room for the pieces of hot features: gradients of encoder, decoder and bias."""
        sizes = self.x.shape[1], self.W_dec.shape[1], 1
        return [torch.empty(2 * self.plan.n_windows, d, device=self.x.device) for d in sizes]


def code_grads(work: Work) -> CodeGrads:
    """Value, weight and bias gradients of a code."""
    (d_sae, d_out), d_in, plan, device = work.W_dec.shape, work.x.shape[1], work.plan, work.x.device
    # padding passes no gradient on
    dvalue = torch.zeros_like(work.code.value) if work.fused else value_grads(work)
    grads = CodeGrads(
        torch.empty(d_sae, d_in, device=device), torch.empty(d_sae, d_out, device=device),
        torch.empty(d_sae, device=device), dvalue,
    )
    parts, constants = work.parts(), work.constants()
    n_tiles = 1 if work.fused else ceil_div(max(d_in, d_out), 512)
    launch(
        kernels.weight_grads_kernel, (2 * plan.n_windows + d_sae, n_tiles), *work.tensors(dvalue), grads.W_enc,
        grads.W_dec, grads.b_enc, *parts, *work.numbers(), FUSED=work.fused, **constants,
    )
    block = tile_width(max(d_in, d_out))
    launch(
        kernels.sum_parts_kernel, (plan.n_windows, ceil_div(max(d_in, d_out), block)), plan.feature, plan.first, *parts,
        grads.W_enc, grads.W_dec, grads.b_enc, plan.n_windows, plan.order.numel(), d_sae, d_in, d_out, CHUNK=plan.chunk,
        BLOCK_D=block,
    )
    return grads


def value_grads(work: Work) -> Float32[Tensor, " nnz"]:
    """`⟨dy, W_dec[feature]⟩ + extra` of each entry; padding passes none on."""
    code, ends = work.code, work.ends
    row: Tensor | int = code.rows() if code.k is None or ends is not None else code.k
    if ends is not None:
        row = torch.bucketize(code.feature, ends, right=True) * code.n_rows + row
    dots = entry_dots(row, code.feature, work.dy.view(-1, work.dy.shape[2]), work.W_dec, extra=work.extra)
    return torch.where(code.value != 0, dots, 0.0)
