"""Sparse–dense products of a code with weight rows, twice differentiable and beyond; each is the other's derivative.

    mix(code, W)[r]    = Σ_f value[r, f] · W[f]         a row from its active features            (decoding)
    read(x, W, code)[e] = ⟨x[row e], W[feature e]⟩      a number for each stored entry            (encoding)

∂mix/∂value is `read` of the gradient and ∂read/∂x is `mix` of it, so backward costs the same as forward. No array of size
n_rows × d_sae is ever allocated.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sae.code import SparseCode

_CHUNK = 1 << 15
"""Entries gathered at a time."""


def mix(code: SparseCode, W: Float[Tensor, "d_sae d"]) -> Float[Tensor, "n_rows d"]:
    """Σ value · W[feature] per row of a CSR code, in the dtype of W; gradients to values and W."""
    rows: Tensor = _Mix.apply(code.value.to(W.dtype), W, code.detach())
    return rows


def read(x: Float[Tensor, "n_rows d"], W: Float[Tensor, "d_sae d"], code: SparseCode) -> Float[Tensor, " nnz"]:
    """⟨x[row], W[feature]⟩ for each stored entry of a CSR code, whatever its value; gradients to x and W."""
    numbers: Tensor = _Read.apply(x, W, code.detach())
    return numbers


class _Mix(torch.autograd.Function):
    """See `mix`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, W: Tensor, code: SparseCode) -> Tensor:
        """A weighted embedding bag of W per row."""
        ctx.save_for_backward(value, W)
        ctx.code = code
        assert code.indptr is not None, "a CSR code"
        return functional.embedding_bag(
            code.feature.long(), W, code.indptr, mode="sum", per_sample_weights=value, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradient of the values by `read`; of W by adding each row's gradient to its features."""
        value, W = ctx.saved_tensors
        by_value = _Read.apply(grads[0], W, ctx.code) if ctx.needs_input_grad[0] else None
        return by_value, _spread(value, grads[0], W, ctx.code) if ctx.needs_input_grad[1] else None, None


class _Read(torch.autograd.Function):
    """See `read`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, code: SparseCode) -> Tensor:
        """Compute in chunks of entries to bound memory."""
        ctx.save_for_backward(x, W)
        ctx.code = code
        pairs = zip(code.rows().split(_CHUNK), code.feature.long().split(_CHUNK), strict=True)
        return torch.cat([(x[row] * W[feature]).sum(1) for row, feature in pairs] or [x.new_zeros(0)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradient of x by `mix`."""
        x, W = ctx.saved_tensors
        by_x = _Mix.apply(grads[0], W, ctx.code) if ctx.needs_input_grad[0] else None
        return by_x, _spread(grads[0], x, W, ctx.code) if ctx.needs_input_grad[1] else None, None


def _spread(value: Tensor, rows: Tensor, W: Tensor, code: SparseCode) -> Float[Tensor, "d_sae d"]:
    """Σ value · row over the entries of each feature."""
    total = torch.zeros_like(W)
    pairs = zip(value.split(_CHUNK), code.rows().split(_CHUNK), code.feature.long().split(_CHUNK), strict=True)
    for part, row, feature in pairs:
        total = total.index_add(0, feature, part[:, None] * rows[row])
    return total
