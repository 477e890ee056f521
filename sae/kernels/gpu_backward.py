"""The backward pass of a code on the GPU: every gradient from one plan, the code's entries sorted by feature."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels import gpu_backward_kernels as kernels
from sae.kernels.gpu_launch import ceil_div, launch, power_of_2, tile_width, warps_for
from sae.kernels.gpu_products import entry_dots

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

    W_enc: Float32[Tensor, "d_sae d_in"]
    W_dec: Float32[Tensor, "d_sae d_out"]
    b_enc: Float32[Tensor, " d_sae"]
    value: Float32[Tensor, " nnz"]


def code_grads(
    plan: FeaturePlan, code: SparseCode, extra: Float32[Tensor, " nnz"] | None, x: Float[Tensor, "n_rows d_in"],
    dy: Float[Tensor, "n_segments n_rows d_out"], W_dec: Float[Tensor, "d_sae d_out"], *,
    ends: Int64[Tensor, " n_ends"] | None = None, fused_width: int = FUSED_WIDTH,
) -> CodeGrads:
    """Value, weight and bias gradients of a code.

    `extra` is the gradient that reaches the values from elsewhere. A feature's dy is that of its segment; segments of
    features end where `ends` say (None: there is one).
    """
    (d_sae, d_out), d_in, device = W_dec.shape, x.shape[1], x.device
    width, fixed = power_of_2(max(d_in, d_out, 16)), code.k is not None
    row = plan.order if fixed else code.rows()
    fused = width <= fused_width
    if fused:
        block_in, block_out = max(16, power_of_2(d_in)), max(16, power_of_2(d_out))
        n_tiles, entries, warps = 1, max(1, min(4, 4096 // width)), warps_for(width, x)
        dvalue = torch.zeros_like(code.value)  # padding passes no gradient on
    else:
        block_in = block_out = 512
        n_tiles, entries, warps = ceil_div(max(d_in, d_out), 512), 8, 4
        dvalue = value_grads(code, extra, dy, W_dec, ends)
    grads = CodeGrads(
        torch.empty(d_sae, d_in, device=device), torch.empty(d_sae, d_out, device=device),
        torch.empty(d_sae, device=device), dvalue,
    )
    sizes = plan.n_windows, plan.order.numel()
    parts = [torch.empty(2 * plan.n_windows, d, device=device) for d in (d_in, d_out, 1)]
    launch(
        kernels.weight_grads_kernel, (2 * plan.n_windows + d_sae, n_tiles), plan.feature, plan.first, plan.order, row,
        code.value, code.value if extra is None else extra, dvalue, plan.first if ends is None else ends, x, dy, W_dec,
        grads.W_enc, grads.W_dec, grads.b_enc, *parts, *sizes, code.k or 1, 0 if ends is None else ends.numel(),
        code.n_rows * d_out, d_sae, d_in, d_out, CHUNK=plan.chunk, BLOCK_ENTRIES=entries, BLOCK_IN=block_in,
        BLOCK_OUT=block_out, FUSED=fused, FIXED_K=fixed, HAS_EXTRA=extra is not None, num_warps=warps,
    )
    block = tile_width(max(d_in, d_out))
    launch(
        kernels.sum_parts_kernel, (plan.n_windows, ceil_div(max(d_in, d_out), block)), plan.feature, plan.first, *parts,
        grads.W_enc, grads.W_dec, grads.b_enc, *sizes, d_sae, d_in, d_out, CHUNK=plan.chunk, BLOCK_D=block,
    )
    return grads


def value_grads(
    code: SparseCode, extra: Float32[Tensor, " nnz"] | None, dy: Float[Tensor, "n_segments n_rows d_out"],
    W_dec: Float[Tensor, "d_sae d_out"], ends: Int64[Tensor, " n_ends"] | None,
) -> Float32[Tensor, " nnz"]:
    """`⟨dy, W_dec[feature]⟩ + extra` of each entry; padding passes none on."""
    row: Tensor | int = code.rows() if code.k is None or ends is not None else code.k
    if ends is not None:
        row = torch.bucketize(code.feature, ends, right=True) * code.n_rows + row
    dots = entry_dots(row, code.feature, dy.view(-1, dy.shape[2]), W_dec, extra=extra)
    return torch.where(code.value != 0, dots, 0.0)
