"""Training on the GPU: forward and backward passes of autoencode and AuxK, as autograd functions.

All work with feature-major encoder weights, `W_enc.t() [d_sae, d_in]`. In bf16, rows of x, of W_dec and of the gradient
of x_hat are gathered in bf16; every sum is fp32, as are values and gradients.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.code import SparseCode
from sae.kernels.gpu import backward as gpu_backward
from sae.kernels.gpu import dense, products
from sae.kernels.gpu import fused as gpu_fused
from sae.kernels.gpu.encode import Encoder, Settings, encode
from sae.kernels.interface import Select


@functools.lru_cache
def on_device(ends: tuple[int, ...], device: torch.device) -> Int64[Tensor, " n"]:
    """The ends of prefixes; copied once, for a copy from the host waits for the device."""
    return torch.tensor(ends, device=device)


def bounds(code: SparseCode, prefixes: tuple[int, ...] | None) -> int | Int64[Tensor, "..."]:
    """Where each row's entries begin and where each of its prefixes of features ends, as `products.decode` takes it."""
    if code.indptr is None:
        assert code.k is not None
        if prefixes is None:
            return code.k
        starts = torch.arange(code.n_rows + 1, device=code.feature.device) * code.k
    else:
        starts = code.indptr
    if prefixes is None:
        return starts
    device = starts.device
    place = code.rows() * code.d_sae + code.feature
    row = torch.arange(code.n_rows, device=device)[:, None] * code.d_sae
    ends = torch.searchsorted(place, row + on_device(prefixes, device))
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


class Saved(NamedTuple):
    """The tensors a backward pass reads, which autograd keeps and watches."""

    W_dec: Float32[Tensor, "d_sae d_out"]
    x: Float[Tensor, "n_rows d_in"]
    """Input rows as gathers and GEMMs read them."""
    decoder: Float[Tensor, "d_sae d_out"]
    """Decoder rows likewise."""
    feature: Int32[Tensor, " nnz"]
    value: Float32[Tensor, " nnz"]
    indptr: Int64[Tensor, " n_rows_plus_1"] | None


@dataclass
class Pass:
    """What a backward pass has to know beside the tensors that autograd saves for it."""

    n_rows: int
    d_sae: int
    nnz: int
    k: int | None
    ends: tuple[int, ...]
    settings: Settings
    left: list[gpu_backward.Left] = field(default_factory=list)
    """Gradients that passes over some of the same weights have left to be added."""
    deferred: gpu_fused.Deferred | None = None
    """Where the gradients of the weights wait for the optimiser, if they are not to be made here."""
    spent: bool = False
    """The backward pass has run."""

    def code(self, saved: Saved, value: Float32[Tensor, " nnz"]) -> SparseCode:
        """The selected code with these values."""
        return SparseCode(saved.feature, value, self.n_rows, self.d_sae, saved.indptr, self.k)

    def gradients(self, dvalue: Tensor | None, dx_hat: Tensor | None, saved: Saved) -> gpu_backward.CodeGrads:
        """Those of the weights and values, from those of the values and reconstructions; without what others left."""
        # detached: what waits for the optimiser is not to keep the graph
        code, x, decoder = self.code(saved, saved.value.detach()), saved.x, saved.decoder
        if dx_hat is None:
            dx_hat = code.value.new_zeros(len(self.ends), self.n_rows, decoder.shape[1])
        dy = suffix_sums(dx_hat, self.ends[-1] >= self.d_sae)
        dvalue = None if dvalue is None else dvalue.contiguous()
        if self.settings.is_dense(self.nnz, self.n_rows, self.d_sae):
            return dense.gradients(code, self.ends, dvalue, x, dy, decoder, self.settings)
        dy = self.settings.operand(dy).contiguous()
        limits = on_device(self.ends, dy.device) if len(dy) > 1 else None
        work = gpu_backward.Work(gpu_backward.plan_by_feature(code), code, x, dy, decoder, dvalue, limits)
        if self.deferred is not None and work.fused and len(self.left) <= 1:
            return self.deferred.take(work, saved.W_dec, self.left)
        return gpu_backward.code_grads(work)

    def input_gradient(self, dvalue: Float32[Tensor, " nnz"], W_enc_t: Tensor, saved: Saved) -> Tensor:
        """∂x = Σ ∂value · W_enc[:, feature]."""
        return _reconstruct(self.code(saved, dvalue), self.settings.operand(W_enc_t), None, None, self.settings)[0]


def _forward(
    x: Tensor, W_enc_t: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor | None, b_pre: Tensor | None,
    select: Select, prefixes: tuple[int, ...] | None, settings: Settings,
) -> tuple[Pass, Saved, Float32[Tensor, "n_prefixes n_rows d_out"]]:
    """Encode, select, decode."""
    encoder = Encoder.of(x if b_pre is None else x - b_pre, W_enc_t, b_enc, settings)
    code = encode(encoder, select)
    decoder = settings.operand(W_dec)
    x_hat = _reconstruct(code, decoder, b_dec, prefixes, settings)
    done = Pass(code.n_rows, code.d_sae, code.feature.numel(), code.k, prefixes or (code.d_sae,), settings)
    return done, Saved(W_dec, encoder.x_operand, decoder, code.feature, code.value, code.indptr), x_hat


class Autoencode(torch.autograd.Function):
    """(x, weights) → (value, x_hat, feature, indptr); the pass is put into `done`."""

    @staticmethod
    def forward(
        ctx: Any, x: Float32[Tensor, "n_rows d_in"], W_enc_t: Float32[Tensor, "d_sae d_in"],
        b_enc: Float32[Tensor, " d_sae"], W_dec: Float32[Tensor, "d_sae d_out"], b_dec: Float32[Tensor, " d_out"],
        b_pre: Float32[Tensor, " d_in"] | None, select: Select, prefixes: tuple[int, ...] | None, settings: Settings,
        done: list[Pass],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Encode, select, decode."""
        ctx.done, saved, x_hat = _forward(x, W_enc_t, b_enc, W_dec, b_dec, b_pre, select, prefixes, settings)
        done.append(ctx.done)
        ctx.save_for_backward(W_enc_t, *saved)
        ctx.mark_non_differentiable(*(t for t in (saved.feature, saved.indptr) if t is not None))
        ctx.set_materialize_grads(False)
        return saved.value, x_hat, saved.feature, saved.indptr

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dvalue: Tensor | None, dx_hat: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Every gradient from one by-feature plan."""
        W_enc_t, saved = ctx.saved_tensors[0], Saved(*ctx.saved_tensors[1:])
        done, needs = ctx.done, ctx.needs_input_grad
        grads = done.gradients(dvalue, dx_hat, saved)
        dx = done.input_gradient(grads.value, W_enc_t, saved) if needs[0] else None
        db_pre = -(grads.b_enc @ W_enc_t) if needs[5] else None
        db_dec = dx_hat.sum((0, 1)) if needs[4] and dx_hat is not None else None
        for left in done.left:
            left.add_to(grads)
        done.left.clear()
        done.spent = True
        return dx, grads.W_enc, grads.b_enc, grads.W_dec, db_dec, db_pre, None, None, None, None


class AuxK(torch.autograd.Function):
    """The reconstruction, without bias, of what a selection among the features `ids` makes active.

    With a `host` (a pass over all features of the same weights, whose value is `ticket`), the gradients of the weights
    are left with it, so that no second gradient of the size of the weights is made; autograd runs the host's backward
    afterwards because the ticket is an input here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float32[Tensor, "n_rows d_in"], W_enc_t: Float32[Tensor, "d_sae d_in"],
        b_enc: Float32[Tensor, " d_sae"], W_dec: Float32[Tensor, "d_sae d_out"], b_pre: Float32[Tensor, " d_in"] | None,
        ids: Int64[Tensor, " n"], select: Select, settings: Settings, host: Pass | None, ticket: Tensor | None,  # noqa: ARG004
    ) -> Float32[Tensor, "n_rows d_out"]:
        """Over copies of the rows of the weights."""
        W = W_enc_t[ids]
        ctx.done, saved, x_hat = _forward(x, W, b_enc[ids], W_dec[ids], None, b_pre, select, None, settings)
        ctx.save_for_backward(ids, W, *saved)
        ctx.host, ctx.d_sae = host, len(W_dec)
        return x_hat[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_hat: Float32[Tensor, "n_rows d_out"]) -> tuple[Tensor | None, ...]:
        """Compact gradients, left with the host or written out."""
        ids, W, *tensors = ctx.saved_tensors
        saved = Saved(*tensors)
        needs, host = ctx.needs_input_grad, ctx.host
        grads = ctx.done.gradients(None, dx_hat[None].contiguous(), saved)
        dx = ctx.done.input_gradient(grads.value, W, saved) if needs[0] else None
        db_pre = -(grads.b_enc @ W) if needs[4] else None
        if host is not None:
            host.left.append(gpu_backward.Left(ids, grads))
        wanted = zip((grads.W_enc, grads.b_enc, grads.W_dec), needs[1:4], strict=True)
        by_feature = [scattered(ids, grad, ctx.d_sae) if grad is not None and need else None for grad, need in wanted]
        ticket = None if host is None else dx_hat.new_zeros(host.nnz)
        return dx, *by_feature, db_pre, None, None, None, None, ticket


def scattered(ids: Int64[Tensor, " n"], rows: Float32[Tensor, "n *d"], d_sae: int) -> Float32[Tensor, "d_sae *d"]:
    """The gradients of some features among zeros."""
    return rows.new_zeros(d_sae, *rows.shape[1:]).index_copy_(0, ids, rows)


def _reconstruct(
    code: SparseCode, W: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None, prefixes: tuple[int, ...] | None,
    settings: Settings,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · W[feature] (+ bias)` of each row and prefix, by gathers or by GEMMs."""
    if settings.is_dense(code.feature.numel(), code.n_rows, code.d_sae):
        return dense.reconstruct(code, W, bias, prefixes or (code.d_sae,), settings)
    return products.decode(code.feature, code.value, bounds(code, prefixes), W, bias)
