"""Optimiser step of the cpu backend, which reads and writes each matrix once."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.cpu import adam, runtime
from sae.kernels.cpu.state import Buffers, Half
from sae.kernels.interface import ParamState
from sae.kernels.reference import Still, remove_radial_


def rows_of(tensor: Tensor) -> Tensor | None:
    """A matrix as contiguous rows in memory order; None if it is not a matrix or not contiguous in either layout."""
    tensor = tensor.detach()
    if tensor.dim() != 2:
        return None
    if tensor.is_contiguous():
        return tensor
    return tensor.t() if tensor.t().is_contiguous() else None


class Matrix:
    """A parameter that the loops can handle, with its tensors as rows in memory order."""

    def __init__(self, state: ParamState, rows: Tensor) -> None:
        self.state, self.rows = state, rows
        self.transposed = not state.param.is_contiguous()
        self.exp_avg, self.exp_avg_sq = self.like_rows(state.exp_avg), self.like_rows(state.exp_avg_sq)
        grad = state.param.grad
        assert grad is not None
        self.grad = self.like_rows(grad).contiguous()
        self.squares = self.radial = torch.empty(0)

    @classmethod
    def of(cls, state: ParamState) -> "Matrix | None":
        """Wrap a parameter, if it and its moments are matrices with the same layout."""
        rows = rows_of(state.param)
        same = state.exp_avg.stride() == state.param.stride() == state.exp_avg_sq.stride()
        if rows is None or not same or (state.unit_rows and not state.param.is_contiguous()):
            return None
        if state.sparse_axis is not None and (state.sparse_axis == 0) != state.param.is_contiguous():
            return None
        return cls(state, rows)

    def like_rows(self, tensor: Tensor) -> Tensor:
        """Another tensor of the parameter's shape, transposed like `rows`."""
        return tensor.detach().t() if self.transposed else tensor.detach()

    def measure(self, buffers: Buffers, W_dec: Tensor | None) -> None:
        """Squared norms of the gradient's rows: those left by the backward if still valid, else computed here."""
        unit = self.state.unit_rows
        known = None if W_dec is None else buffers.kept_stats(self.grad, W_dec)
        if known is not None:
            squares, self.radial = known
            self.squares = squares if squares.dim() == 1 else squares[:, 0 if unit else 1]
            return
        self.squares, self.radial = torch.empty(self.rows.shape[0]), torch.empty(self.rows.shape[0])
        runtime.run(
            adam.row_stats, runtime.even(self.rows.shape[0]), self.grad.numpy(), self.rows.numpy(), unit,
            self.squares.numpy(), self.radial.numpy(),
        )

    def step(self, numbers: "Numbers", half: Half | None) -> None:
        """Clip, Adam step, normalise unit rows, and write the bf16 copy."""
        bits = np.empty((0, 0), np.uint16) if half is None else half.w16.view(torch.uint16).numpy()
        norms = torch.empty(self.rows.shape[0]) if half is None else half.norms
        runtime.run(
            adam.adam_rows, runtime.even(self.rows.shape[0], 64), self.rows.numpy(), self.grad.numpy(),
            self.squares.contiguous().numpy(), self.radial.numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy(),
            *numbers.float32(), self.state.unit_rows, self.state.sparse_axis is not None, half is not None, bits,
            norms.numpy(),
        )
        for changed in (self.state.param, self.state.exp_avg, self.state.exp_avg_sq):
            torch.autograd.graph.increment_version(changed)


class Numbers:
    """The scalars of an Adam step."""

    def __init__(
        self, step: int, lr: float, betas: tuple[float, float], eps: float, scale: float
    ) -> None:
        self.scale, self.gain1, self.gain2 = scale, 1 - betas[0], 1 - betas[1]
        self.step_size = lr / (1 - betas[0] ** step)
        self.factor2, self.eps = (1 - betas[1] ** step) ** -0.5, eps

    def float32(self) -> tuple[np.float32, ...]:
        """The scalars in the order of the loop's arguments."""
        fields = (self.scale, self.gain1, self.gain2, self.step_size, self.factor2, self.eps)
        return tuple(np.float32(number) for number in fields)

    def small(self, state: ParamState) -> None:
        """The same step in torch, for vectors and other parameters the loops cannot handle."""
        grad = state.param.grad
        assert grad is not None
        before = Still.of(state)
        grad = grad * self.scale
        state.exp_avg.lerp_(grad, self.gain1)
        state.exp_avg_sq.lerp_(grad * grad, self.gain2)
        # numpy's sqrt: torch would use threads for short vectors, and waking them takes longer than the rest of the step
        root = torch.from_numpy(np.sqrt(state.exp_avg_sq.detach().numpy()))
        state.param.addcdiv_(state.exp_avg, root.mul_(self.factor2).add_(self.eps), value=-self.step_size)
        if state.unit_rows:
            state.param.div_(state.param.norm(dim=1, keepdim=True).clamp_min(1e-12))
        before.restore(state)


def step_params(
    buffers: Buffers, params: list[ParamState], step: int, lr: float, betas: tuple[float, float], eps: float,
    clip: float | None, half: bool,
) -> Float[Tensor, ""]:
    """One Adam step on parameters that all have gradients; returns the norm before clipping."""
    matrices = [Matrix.of(p) for p in params]
    decoders = [p.param for p in params if p.param.dim() == 2 and p.param.is_contiguous()]
    square = 0.0
    for state, matrix in zip(params, matrices, strict=True):
        if matrix is not None:
            # the backward's statistics of both matrices depend on the decoder rows at that time
            matrix.measure(buffers, decoders[0] if len(decoders) == 1 else None)
            square += float(matrix.squares.double().sum())
        else:
            grad = state.param.grad
            assert grad is not None
            if state.unit_rows:
                remove_radial_(grad, state.param)
            square += float(grad.double().square().sum())
    norm = math.sqrt(square) if math.isfinite(square) else math.nan
    scale = 1.0 if clip is None or norm <= clip else clip / norm
    numbers = Numbers(step, lr, betas, eps, scale)
    for state, matrix in zip(params, matrices, strict=True):
        if matrix is None:
            numbers.small(state)
        else:
            copied = buffers.half_space(tuple(matrix.rows.shape)) if half and matrix.transposed else None
            matrix.step(numbers, copied)
            if copied is not None:
                buffers.keep_half(state.param, copied)
            buffers.give_spare(matrix.grad)
        state.param.grad = None
    return torch.tensor(norm, dtype=torch.float32)
