"""Launchers of the Triton kernels for sparse products: one function per operation, tensors in and out."""

import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from sae.kernels.gpu import code_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, tile_width, warps_for


def entry_dots(
    row: Int[Tensor, " nnz"] | int, feature: Int[Tensor, " nnz"], rows: Float[Tensor, "n_rows d"],
    weights: Float[Tensor, "d_sae d"], *, bias: Float32[Tensor, " d_sae"] | None = None,
    extra: Float32[Tensor, " nnz"] | None = None,
) -> Float32[Tensor, " nnz"]:
    """`rows[row] · weights[feature]` of each entry in fp32, plus its feature's bias or its own extra.

    If `row` is an int, each row has that many entries.
    """
    dots = torch.empty(feature.numel(), device=rows.device)
    fixed = isinstance(row, int)
    launch(
        kernels.entry_dots_kernel, (ceil_div(feature.numel(), 8),), feature if fixed else row, feature, rows, weights,
        rows if bias is None else bias, rows if extra is None else extra, dots, feature.numel(), row if fixed else 1,
        weights.shape[1], BLOCK_ENTRIES=8, BLOCK_D=tile_width(weights.shape[1], 256), FIXED_K=fixed,
        HAS_BIAS=bias is not None, HAS_EXTRA=extra is not None,
    )
    return dots


def decode(
    feature: Int32[Tensor, " nnz"], value: Float[Tensor, " nnz"],
    bounds: int | Int64[Tensor, " n_rows_plus_1"] | Int64[Tensor, "n_rows n_prefixes_plus_1"],
    weights: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · weights[feature] (+ bias)` of each row and prefix.

    `bounds` gives the start of each row's entries and the end of each of its prefixes: indptr for a CSR code, k for a
    fixed-k code, or an array `[n_rows, n_prefixes + 1]`.
    """
    if isinstance(bounds, int):
        n_rows, n_prefixes, stride = feature.numel() // bounds, 1, bounds
    elif bounds.dim() == 1:
        n_rows, n_prefixes, stride = bounds.numel() - 1, 1, 1
    else:
        n_rows, n_prefixes, stride = bounds.shape[0], bounds.shape[1] - 1, bounds.shape[1]
    d = weights.shape[1]
    out = torch.empty(n_prefixes, n_rows, d, device=weights.device)
    block = tile_width(d)
    launch(
        kernels.decode_kernel, (n_rows, ceil_div(d, block)), feature, value,
        feature if isinstance(bounds, int) else bounds, weights, weights if bias is None else bias, out, d, n_rows * d,
        n_prefixes, stride, BLOCK_ENTRIES=8, BLOCK_D=block, FIXED_K=isinstance(bounds, int), HAS_BIAS=bias is not None,
        num_warps=warps_for(block, weights),
    )
    return out
