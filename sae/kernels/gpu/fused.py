"""Fused backward and Adam: update W_enc and W_dec without storing their gradients.

The backward pass computes the value gradients and the norms needed for clipping. The optimiser step then recomputes each
feature's gradients in registers and updates its rows. This saves 8 · d_sae · (d_in + d_out) bytes of traffic and half of
that in memory, at the cost of gathering the active rows twice. It saves time if features have few entries
(n_rows · k < 4 · d_sae, without cache hits). It saves memory up to about 60 entries per feature: inputs, their gradients
and the partial sums of hot features are kept, (d_in + d_out) / 32 bytes per entry.

Until the optimiser step, `.grad` of both weights only has gradients from other loss terms. If there are any, or if several
passes are deferred for the same weights, the gradients are computed and added after all. Deferred gradients stay until an
optimiser step, so one must follow every backward pass through the weights (also `torch.autograd.grad`, whatever its
inputs).
"""

import weakref
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from sae.errors import SaescopeError
from sae.kernels.gpu import fused_kernels as kernels
from sae.kernels.gpu.backward import CodeGrads, Left, Work, code_grads
from sae.kernels.gpu.launch import launch
from sae.kernels.interface import ParamState


@dataclass
class Waiting:
    """Deferred gradients of both weights."""

    W_enc: weakref.ref
    W_dec: weakref.ref
    work: Work
    left: Left | None
    dvalue: Float32[Tensor, " nnz"]
    parts: list[Tensor]
    left_rows: tuple[Tensor, Tensor, Tensor]
    stats: Float32[Tensor, "4 d_sae"]
    """Statistics of each feature's gradients: see `fused_kernels.store_stats`."""
    versions: list[int] = field(default_factory=list)
    """Autograd versions of the tensors that the step reads."""

    def read(self) -> list[Tensor]:
        """Tensors that the step reads and that a caller could have modified."""
        work, weights = self.work, (self.W_enc(), self.W_dec())
        tensors = [work.x, work.dy, work.code.value, work.code.feature, *weights]
        return [t for t in tensors if t is not None]

    def check(self) -> None:
        """Check that these tensors have not been modified since backward.

        Raises:
            SaescopeError: they have.
        """
        if [t._version for t in self.read()] != self.versions:
            raise SaescopeError(
                "kernels: weights or activations were changed between the backward pass and the optimiser step, but "
                "fused_adam still needs them; change them after the step, or set train.fused_adam=false."
            )

    def squares(self, unit_rows: bool) -> Float32[Tensor, ""]:
        """Squared norm of both gradients."""
        return self.stats[0].sum() + self.stats[3 if unit_rows else 1].sum()

    def write_out(self) -> None:
        """Compute the gradients and add them to `.grad`."""
        self.check()
        W_enc, W_dec = self.W_enc(), self.W_dec()
        if W_enc is None or W_dec is None:
            return
        grads = code_grads(self.work)
        if self.left is not None:
            self.left.add_to(grads, self.work.W_dec)
        assert grads.W_enc is not None and grads.W_dec is not None
        for weight, grad in ((W_enc, grads.W_enc.t()), (W_dec, grads.W_dec)):
            weight.grad = grad if weight.grad is None else weight.grad + grad


@dataclass
class Deferred:
    """Collects the deferred gradients of both weights."""

    W_enc: weakref.ref
    W_dec: weakref.ref
    waiting: list[Waiting] = field(repr=False)

    def take(self, work: Work, W_dec: Float32[Tensor, "d_sae d_out"], left: Left | None) -> CodeGrads:
        """Compute gradients of values and biases; defer those of the weights."""
        d_sae, device = W_dec.shape[0], W_dec.device
        waiting = Waiting(
            self.W_enc, self.W_dec, work, left, torch.zeros_like(work.code.value), work.parts(),
            left_tensors(work, left), torch.empty(4, d_sae, device=device),
        )
        b_enc = torch.empty(d_sae, device=device)
        tensors, constants, plan = work.tensors(waiting.dvalue), work.constants(), work.plan
        tail = (*waiting.left_rows, W_dec, b_enc, waiting.stats, *waiting.parts)
        launch(
            kernels.grad_stats_kernel, (2 * plan.n_windows + d_sae,), *tensors, *tail, *work.numbers(), **constants,
            HAS_LEFT=left is not None,
        )
        launch(
            kernels.hot_stats_kernel, (plan.n_windows,), plan.feature, plan.first, *tail, plan.n_windows,
            plan.order.numel(), d_sae, work.x.shape[1], work.W_dec.shape[1], CHUNK=plan.chunk,
            BLOCK_IN=constants["BLOCK_IN"], BLOCK_OUT=constants["BLOCK_OUT"], HAS_LEFT=left is not None,
            num_warps=constants["num_warps"],
        )
        waiting.versions = [t._version for t in waiting.read()]
        self.waiting.append(waiting)
        return CodeGrads(None, None, b_enc, waiting.dvalue)


def left_tensors(work: Work, left: Left | None) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each feature in AuxK's weight gradients (−1: none), and these gradients."""
    if left is None:
        return work.plan.first, work.dy, work.dy
    row = torch.full((work.code.d_sae,), -1, dtype=torch.int32, device=work.dy.device)
    row[left.ids] = torch.arange(left.ids.numel(), dtype=torch.int32, device=row.device)
    assert left.grads.W_enc is not None and left.grads.W_dec is not None
    return row, left.grads.W_enc, left.grads.W_dec


def claim(waiting: list[Waiting], params: list[ParamState]) -> tuple[Waiting, ParamState, ParamState] | None:
    """The deferred gradients with their parameters, if the fused step supports them; else compute them now."""
    by_id = {id(p.param): p for p in params}
    here = [waiting.pop() for _ in range(len(waiting))]
    if len(here) == 1:
        enc, dec = (by_id.get(id(ref())) for ref in (here[0].W_enc, here[0].W_dec))
        if enc is not None and dec is not None and fits(enc, dec):
            here[0].check()
            return here[0], enc, dec
    for one in here:
        one.write_out()
    return None


def fits(enc: ParamState, dec: ParamState) -> bool:
    """Whether there are no other gradients and `fused_adam_kernel` supports these options."""
    alone = enc.param.grad is None and dec.param.grad is None
    return alone and not enc.unit_rows and (enc.sparse_axis is None) == (dec.sparse_axis is None)


def fused_step(
    waiting: Waiting, enc: ParamState, dec: ParamState, norm: Float32[Tensor, ""], clip: float | None,
    numbers: tuple[float, ...], rates: Float32[Tensor, "2"] | None,
) -> None:
    """One Adam step of both weights; `numbers` and `rates` are as in `code_kernels.adam_kernel`."""
    work = waiting.work
    states = [(p.param, p.exp_avg, p.exp_avg_sq) for p in (enc, dec)]
    assert all(t.t().is_contiguous() for t in states[0]) and all(t.is_contiguous() for t in states[1])
    launch(
        kernels.fused_adam_kernel, (2 * work.plan.n_windows + work.code.d_sae,), *work.tensors(waiting.dvalue),
        *waiting.left_rows, *states[0], *states[1], waiting.stats, *waiting.parts[:2], norm,
        norm if rates is None else rates, *work.numbers(), 0.0 if clip is None else clip, *numbers, **work.constants(),
        HAS_LEFT=waiting.left is not None, UNIT_ROWS=dec.unit_rows,
        SPARSE=dec.sparse_axis is not None, CLIP=clip is not None,
        ON_DEVICE=rates is not None,
    )
    torch.autograd.graph.increment_version([*states[0], *states[1]])
