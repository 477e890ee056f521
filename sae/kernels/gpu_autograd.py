"""Training on the GPU: forward and backward passes of autoencode and AuxK, as autograd functions.

All work with feature-major encoder weights, `W_enc.t() [d_sae, d_in]`. In bf16, rows of x, of W_dec and of the gradient
of x_hat are gathered in bf16; every sum is fp32, as are values and gradients.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.code import SparseCode
from sae.kernels import Select, gpu_backward, gpu_dense, gpu_products
from sae.kernels.gpu_encode import Encoder, Settings, encode


def bounds(code: SparseCode, prefixes: tuple[int, ...] | None) -> int | Int64[Tensor, "..."]:
    """Where each row's entries begin and where each of its prefixes of features ends, as `gpu_products.decode` takes it."""
    if prefixes is None:
        return code.k if code.indptr is None else code.indptr
    device = code.feature.device
    starts = torch.arange(code.n_rows + 1, device=device) * code.k if code.indptr is None else code.indptr
    place = code.rows() * code.d_sae + code.feature
    row = torch.arange(code.n_rows, device=device)[:, None] * code.d_sae
    ends = torch.searchsorted(place, row + torch.tensor(prefixes, device=device))
    return torch.cat([starts[:-1, None], ends], dim=1)


def suffix_sums(
    dx_hat: Float32[Tensor, "n_prefixes n_rows d_out"], covers_all: bool
) -> Float32[Tensor, "n_segments n_rows d_out"]:
    """The gradient of the part of x_hat that features between two prefix ends make: it is in every later prefix."""
    if dx_hat.shape[0] > 1:
        dx_hat = dx_hat.clone()
        for later in range(dx_hat.shape[0] - 1, 0, -1):
            dx_hat[later - 1] += dx_hat[later]
    return dx_hat if covers_all else torch.cat([dx_hat, torch.zeros_like(dx_hat[:1])])


class Autoencode(torch.autograd.Function):
    """(x, weights) → (value, x_hat, feature, indptr)."""

    @staticmethod
    def forward(
        ctx: Any, x: Float32[Tensor, "n_rows d_in"], W_enc_t: Float32[Tensor, "d_sae d_in"],
        b_enc: Float32[Tensor, " d_sae"], W_dec: Float32[Tensor, "d_sae d_out"], b_dec: Float32[Tensor, " d_out"],
        b_pre: Float32[Tensor, " d_in"] | None, select: Select, prefixes: tuple[int, ...] | None, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Encode, select, decode."""
        encoder = Encoder.of(x if b_pre is None else x - b_pre, W_enc_t, b_enc, settings)
        code = encode(encoder, select)
        decoder = settings.operand(W_dec)
        x_hat = _reconstruct(code, decoder, b_dec, prefixes, settings)
        ctx.n_rows, ctx.d_sae, ctx.k, ctx.prefixes, ctx.settings = code.n_rows, code.d_sae, code.k, prefixes, settings
        ctx.save_for_backward(encoder.x_operand, W_enc_t, decoder, code.feature, code.value, code.indptr)
        ctx.mark_non_differentiable(*(t for t in (code.feature, code.indptr) if t is not None))
        ctx.set_materialize_grads(False)
        return code.value, x_hat, code.feature, code.indptr

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dvalue: Tensor | None, dx_hat: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Every gradient from one by-feature plan."""
        x, W_enc_t, decoder, feature, value, indptr = ctx.saved_tensors
        code = SparseCode(feature, value, ctx.n_rows, ctx.d_sae, indptr=indptr, k=ctx.k)
        ends = ctx.prefixes or (ctx.d_sae,)
        if dx_hat is None:
            dx_hat = value.new_zeros(len(ends), ctx.n_rows, decoder.shape[1])
        dy = suffix_sums(dx_hat, ends[-1] >= ctx.d_sae)
        dvalue = None if dvalue is None else dvalue.contiguous()
        if ctx.settings.is_dense(feature.numel(), ctx.n_rows, ctx.d_sae):
            grads = gpu_dense.gradients(code, ends, dvalue, x, dy, decoder, ctx.settings)
        else:
            grads = _sparse_gradients(code, ends, dvalue, x, dy, decoder, ctx.settings)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _reconstruct(replace(code, value=grads.value), ctx.settings.operand(W_enc_t), None, None, ctx.settings)[0]
        db_pre = -(grads.b_enc @ W_enc_t) if ctx.needs_input_grad[5] else None
        return dx, grads.W_enc, grads.b_enc, grads.W_dec, dx_hat.sum((0, 1)), db_pre, None, None, None


def _reconstruct(
    code: SparseCode, W: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None, prefixes: tuple[int, ...] | None,
    settings: Settings,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · W[feature] (+ bias)` of each row and prefix, by gathers or by GEMMs."""
    if settings.is_dense(code.feature.numel(), code.n_rows, code.d_sae):
        return gpu_dense.reconstruct(code, W, bias, prefixes or (code.d_sae,), settings)
    return gpu_products.decode(code.feature, code.value, bounds(code, prefixes), W, bias)


def _sparse_gradients(
    code: SparseCode, ends: tuple[int, ...], extra: Float32[Tensor, " nnz"] | None, x: Float[Tensor, "n_rows d_in"],
    dy: Float32[Tensor, "n_segments n_rows d_out"], decoder: Float[Tensor, "d_sae d_out"], settings: Settings,
) -> gpu_backward.CodeGrads:
    """Every gradient of the weights and values from one by-feature plan."""
    dy = settings.operand(dy).contiguous()
    limits = torch.tensor(ends, device=dy.device) if len(dy) > 1 else None
    return gpu_backward.code_grads(gpu_backward.plan_by_feature(code), code, extra, x, dy, decoder, ends=limits)
