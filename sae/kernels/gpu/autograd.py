"""Training on the GPU: forward and backward pass, with AuxK, as an autograd function.

Encoder weights are feature-major, `W_enc.t() [d_sae, d_in]`. In bf16, rows of x, of W_dec and of the gradient of x_hat are
gathered in bf16; all sums, values and gradients are fp32.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.code import SparseCode
from sae.kernels.gpu import backward as gpu_backward
from sae.kernels.gpu import dense, operands, products
from sae.kernels.gpu import fused as gpu_fused
from sae.kernels.gpu.encode import Encoder, Settings, encode, everything, matmul
from sae.kernels.interface import Agree, Revival, Select
from sae.kernels.reference import agreed


@functools.lru_cache
def on_device(ends: tuple[int, ...], device: torch.device) -> Int64[Tensor, " n"]:
    """The ends of prefixes on the device; cached, because a copy from the host syncs."""
    return torch.tensor(ends, device=device)


def bounds(code: SparseCode, prefixes: tuple[int, ...] | None) -> int | Int64[Tensor, "..."]:
    """Start of each row's entries and end of each of its prefixes, as arguments for `products.decode`."""
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


class Saved(NamedTuple):
    """Tensors saved for backward, whose versions autograd checks."""

    W_dec: Float32[Tensor, "d_sae d_out"]
    x: Float[Tensor, "n_rows d_in"]
    """Input rows in operand precision."""
    decoder: Float[Tensor, "d_sae d_out"]
    """Decoder rows in operand precision."""
    feature: Int32[Tensor, " nnz"]
    value: Float32[Tensor, " nnz"]
    indptr: Int64[Tensor, " n_rows_plus_1"] | None


@dataclass
class Pass:
    """What backward needs besides the saved tensors."""

    n_rows: int
    d_sae: int
    nnz: int
    k: int | None
    ends: tuple[int, ...]
    settings: Settings

    def code(self, saved: Saved, value: Float32[Tensor, " nnz"]) -> SparseCode:
        """The selected code with these values."""
        return SparseCode(saved.feature, value, self.n_rows, self.d_sae, saved.indptr, self.k)

    def segments(self, dx_hat: Tensor | None, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of the contributions of features between two prefix ends, in operand precision, and that of b_dec."""
        if dx_hat is None:
            dx_hat = saved.value.new_zeros(len(self.ends), self.n_rows, saved.decoder.shape[1])
        return operands.segments(dx_hat, self.ends[-1] >= self.d_sae, self.settings.precision == "bf16")

    def gradients(
        self, dvalue: Tensor | None, dy: Float[Tensor, "n_segments n_rows d_out"], saved: Saved, *,
        left: gpu_backward.Left | None = None, deferred: gpu_fused.Deferred | None = None,
    ) -> gpu_backward.CodeGrads:
        """Gradients of weights and values.

        Args:
            dvalue: gradient of the values from losses on them.
            dy: gradients of the reconstructions, from `segments`.
            saved: tensors saved by the forward pass.
            left: weight gradients from AuxK, to be added.
            deferred: where to defer weight gradients to the optimiser; None computes them here.
        """
        # detach, so that deferred gradients do not keep the graph alive
        code, x, decoder = self.code(saved, saved.value.detach()), saved.x, saved.decoder
        dvalue = None if dvalue is None else dvalue.contiguous()
        if self.settings.is_dense(self.nnz, self.n_rows, self.d_sae):
            grads = dense.gradients(code, self.ends, dvalue, x, dy, decoder, self.settings)
        else:
            limits = on_device(self.ends, dy.device) if len(dy) > 1 else None
            work = gpu_backward.Work(gpu_backward.plan_by_feature(code), code, x, dy, decoder, dvalue, limits)
            if deferred is not None and work.fused:
                grads = deferred.take(work, saved.W_dec, left)
            else:
                grads = gpu_backward.code_grads(work)
        if left is not None:
            left.add_to(grads, saved.decoder)
        return grads

    def input_gradient(self, dvalue: Float32[Tensor, " nnz"], W_enc_t: Tensor, saved: Saved) -> Tensor:
        """∂x = Σ ∂value · W_enc[:, feature], with weights in operand precision."""
        return _reconstruct(self.code(saved, dvalue), W_enc_t, None, None, self.settings)[0]


def _forward(
    encoder: Encoder, W_dec: Tensor, decoder: Tensor, b_dec: Tensor | None, select: Select,
    prefixes: tuple[int, ...] | None,
) -> tuple[Pass, Saved, Float32[Tensor, "n_prefixes n_rows d_out"]]:
    """Encode, select, decode; `decoder` is W_dec in operand precision."""
    settings = encoder.settings
    if select.fixed and select.mode == "threshold" and settings.keeps_all(*encoder.shape):
        code = everything(encoder, select.threshold, absolute=select.absolute)
    else:
        code = agreed(encode(encoder, select), select.agree)
    x_hat = _reconstruct(code, decoder, b_dec, prefixes, settings)
    done = Pass(code.n_rows, code.d_sae, code.feature.numel(), code.k, prefixes or (code.d_sae,), settings)
    return done, Saved(W_dec, encoder.x_operand, decoder, code.feature, code.value, code.indptr), x_hat


class Chosen(NamedTuple):
    """Candidate features of AuxK."""

    ids: Int64[Tensor, " n"]
    dead: Bool[Tensor, " n"] | None
    """Mask of those that are dead; None: all."""

    @classmethod
    def of(cls, auxk: Revival) -> "Chosen | None":
        """The dead features; with `room`, exactly that many features, dead ones first. None if there are none."""
        if auxk.room is None:
            ids = auxk.dead.nonzero().squeeze(-1)
            return cls(ids, None) if ids.numel() else None
        # ids are unique, so each gradient row is updated by one thread (live features get zeros)
        order = torch.sort(auxk.dead.to(torch.uint8), descending=True, stable=True).indices
        ids = order[: auxk.room]
        return cls(ids, auxk.dead[ids]) if auxk.room else None


FEW = 24
"""Up to FEW · k features, an fp32 product is faster than re-scoring k candidates per row."""


def _revive(
    encoder: Encoder, chosen: Chosen, decoder: Tensor, k: int, *, absolute: bool, agree: Agree | None
) -> tuple[Pass, Saved, Float32[Tensor, "n_rows d_out"]]:
    """The AuxK pass with the k strongest dead features per row; `decoder` is W_dec in operand precision."""
    settings, rows, few = encoder.settings, decoder[chosen.ids], encoder.of_features(chosen.ids, chosen.dead)
    if k == len(rows):
        code = everything(few, absolute=absolute)
    else:
        code = encode(few.in_fp32() if len(rows) <= FEW * k else few, Select("topk", k=k, absolute=absolute))
    code = agreed(code, agree)
    done = Pass(code.n_rows, code.d_sae, code.feature.numel(), k, (code.d_sae,), settings)
    saved = Saved(rows, encoder.x_operand, rows, code.feature, code.value, None)
    return done, saved, _reconstruct(code, rows, None, None, settings)[0]


class Operands(NamedTuple):
    """Weights in operand precision, feature-major."""

    W_enc_t: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_out"]


class Options(NamedTuple):
    """Options of a pass."""

    select: Select
    prefixes: tuple[int, ...] | None
    settings: Settings
    k_aux: int
    """Dead features per row in AuxK."""
    deferred: gpu_fused.Deferred | None
    """Where to defer weight gradients to the optimiser; None: compute them in backward."""
    operands: Operands
    """Both weights in operand precision."""
    keep: Callable[[gpu_backward.CodeGrads], None]
    """Callback with the gradients of a backward pass."""
    agree_aux: Agree | None = None
    """See `Revival.agree`."""


class Autoencode(torch.autograd.Function):
    """(x, weights, dead features) → (value, x_hat, aux_hat, feature, indptr).

    AuxK (if `chosen` is given) is a pass over copies of the dead features' weights. Its gradient rows are added to the full
    gradients, so no second gradient of the size of the weights is allocated.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float32[Tensor, "n_rows d_in"], W_enc_t: Float32[Tensor, "d_sae d_in"],
        b_enc: Float32[Tensor, " d_sae"], W_dec: Float32[Tensor, "d_sae d_out"], b_dec: Float32[Tensor, " d_out"],
        b_pre: Float32[Tensor, " d_in"] | None, chosen: Chosen | None, options: Options,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """Encode, select, decode."""
        select, settings = options.select, options.settings
        encoder = Encoder.in_training(x, b_pre, W_enc_t, b_enc, settings, options.operands.W_enc_t)
        decoder = options.operands.W_dec
        ctx.done, saved, x_hat = _forward(encoder, W_dec, decoder, b_dec, select, options.prefixes)
        kept, aux_hat = [encoder.W_operand, *saved], None
        if chosen is not None:
            ctx.aux, of_dead, aux_hat = _revive(
                encoder, chosen, decoder, options.k_aux, absolute=select.absolute, agree=options.agree_aux
            )
            kept = [*kept, chosen.ids, *of_dead]
        ctx.save_for_backward(*kept)
        ctx.deferred, ctx.keep = options.deferred, options.keep
        ctx.mark_non_differentiable(*(t for t in (saved.feature, saved.indptr) if t is not None))
        ctx.set_materialize_grads(False)
        return saved.value, x_hat, aux_hat, saved.feature, saved.indptr

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dvalue: Tensor | None, dx_hat: Tensor | None, daux_hat: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """All gradients from the entries sorted by feature, and likewise for AuxK."""
        W_enc_t, *tensors = ctx.saved_tensors
        done, saved, needs, n = ctx.done, Saved(*tensors[: len(Saved._fields)]), ctx.needs_input_grad, len(Saved._fields)
        left = None
        if daux_hat is not None:
            dead, of_dead = tensors[n], Saved(*tensors[n + 1 :])
            dy, _ = ctx.aux.segments(daux_hat[None], of_dead)
            left = gpu_backward.Left(dead, ctx.aux.gradients(None, dy, of_dead))
        dy, db_dec = done.segments(dx_hat, saved)
        grads = done.gradients(dvalue, dy, saved, left=left, deferred=ctx.deferred)
        ctx.keep(grads)
        dx = done.input_gradient(grads.value, W_enc_t, saved) if needs[0] else None
        if dx is not None and left is not None:
            dx += ctx.aux.input_gradient(left.grads.value, W_enc_t[left.ids], of_dead)
        # a pass over all of W_enc, so only if needed
        db_pre = -matmul(done.settings.operand(grads.b_enc[None]), W_enc_t)[0] if needs[5] else None
        db_dec = db_dec if needs[4] and dx_hat is not None else None
        return dx, grads.W_enc, grads.b_enc, grads.W_dec, db_dec, db_pre, None, None


def _reconstruct(
    code: SparseCode, W: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None, prefixes: tuple[int, ...] | None,
    settings: Settings,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · W[feature] (+ bias)` of each row and prefix, by gathers or GEMMs."""
    if settings.is_dense(code.feature.numel(), code.n_rows, code.d_sae):
        return dense.reconstruct(code, W, bias, prefixes or (code.d_sae,), settings)
    return products.decode(code.feature, code.value, bounds(code, prefixes), W, bias)
