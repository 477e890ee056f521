"""Optimiser step of the GPU backend: launchers of its two Triton kernels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sae.kernels.gpu import code_kernels as kernels
from sae.kernels.gpu.caches import Copies, KeptStats
from sae.kernels.gpu.fused import Waiting, claim, fused_step
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2
from sae.kernels.interface import ParamState


def _flat(tensor: Tensor, like: Tensor) -> Float[Tensor, " n"]:
    """A tensor's elements in the memory order of `like` (a view if the layouts agree)."""
    feature_major = like.dim() == 2 and not like.is_contiguous()
    return (tensor.t() if feature_major else tensor).reshape(-1)


def _in_place(tensor: Tensor, like: Tensor) -> Float[Tensor, " n"]:
    """`_flat` as a view, for writing."""
    flat = _flat(tensor, like)
    assert flat.data_ptr() == tensor.data_ptr(), "a parameter and its moments must be dense and have the same layout"
    return flat


def _row_length(p: ParamState) -> int:
    """Consecutive elements per program of the optimiser: one feature's if the step is per feature."""
    if p.sparse_axis is None:
        return p.param.shape[1] if p.unit_rows else 4096
    lies_by_feature = p.param.dim() == 1 or (p.sparse_axis == 0) == p.param.is_contiguous()
    assert lies_by_feature, "per-feature parameters must be feature-major: see sae.kernels"
    return p.param.numel() // p.param.shape[p.sparse_axis]


def _kept_rows(
    params: list[ParamState], kept: KeptStats | None
) -> dict[int, tuple[Float32[Tensor, " d_sae"], Float32[Tensor, " d_sae"]]]:
    """Squared norms and radial parts per feature of the gradients for which the backward pass left statistics."""
    live = {p.param.grad.data_ptr(): p for p in params if p.param.grad is not None}
    if kept is None or any(grad.data_ptr() not in live for grad in kept.grads):
        return {}
    enc, dec = (live[grad.data_ptr()] for grad in kept.grads)
    assert enc.param.grad is not None and dec.param.grad is not None
    if enc.unit_rows or not kept.holds_for(enc.param.grad, dec.param.grad, dec.param):
        return {}
    # per-feature norms are only needed for sparse Adam
    squares = kept.stats.enc if enc.sparse_axis is not None else kept.stats.radial
    return {id(enc): (squares, squares), id(dec): (kept.stats.dec(dec.unit_rows), kept.stats.radial)}


@dataclass
class _Flat:
    """A parameter with a gradient, flat in memory order, and its division into rows."""

    state: ParamState
    grad: Float32[Tensor, " n"]
    d: int
    square: Float32[Tensor, " n_rows"]
    radial: Float32[Tensor, "*n_rows"]

    @property
    def block(self) -> int:
        """Elements per tile of a program."""
        return min(1024, max(16, power_of_2(self.d)))


def _with_norms(
    params: list[ParamState], kept: KeptStats | None
) -> tuple[list[_Flat], Float32[Tensor, ""]]:
    """The parameters with gradients, and their squared global norm."""
    known = _kept_rows(params, kept)
    live = [(p, _flat(p.param.grad, p.param), _row_length(p)) for p in params if p.param.grad is not None]
    lengths = [0 if id(p) in known else ceil_div(p.param.numel(), d) for p, _, d in live]
    squares = torch.empty(sum(lengths), device=params[0].param.device)
    flats = []
    for (p, grad, d), square in zip(live, squares.split(lengths), strict=True):
        if id(p) in known:
            flats.append(_Flat(p, grad, d, *known[id(p)]))
            continue
        flat = _Flat(p, grad, d, square, torch.empty_like(square) if p.unit_rows else grad)
        launch(
            kernels.grad_norm_kernel, (square.numel(),), grad, _in_place(p.param, p.param), square, flat.radial,
            p.param.numel(), d, BLOCK_D=flat.block, UNIT_ROWS=p.unit_rows,
        )
        flats.append(flat)
    total = squares.sum()
    if known:
        assert kept is not None
        total = total + kept.stats.squares(any(p.unit_rows for p in params if id(p) in known)).sum()
    return flats, total


def optimizer_step(
    params: list[ParamState], waiting: list[Waiting], kept: KeptStats | None, copies: Copies, *, step: int, lr: float,
    betas: tuple[float, float], eps: float, clip: float | None, rates: Float32[Tensor, "2"] | None = None,
) -> Float32[Tensor, ""]:
    """One Adam step, see `sae.kernels.Backend`; without a device sync.

    Gradients are read once, and once more for their norm if the backward pass left no statistics. Deferred gradients are
    computed inside the fused step if it supports them, else first. bf16 copies of weights are updated too.
    """
    claimed = claim(waiting, params)
    numbers = (
        lr / (1 - betas[0] ** step), 1 - betas[0], betas[1], 1 - betas[1], 1 / (1 - betas[1] ** step), eps,
    )
    flats, total = _with_norms(params, kept)
    if claimed is not None:
        total = total + claimed[0].squares(claimed[2].unit_rows)
    norm = total.sqrt()
    if claimed is not None:
        fused_step(*claimed, norm, clip, numbers, rates)
    for flat in flats:
        p = flat.state
        param, mean, var = (_in_place(t, p.param) for t in (p.param, p.exp_avg, p.exp_avg_sq))
        half = copies.to_write(p.param)
        bits = param if half is None else _in_place(half, p.param).view(torch.int16)
        launch(
            kernels.adam_kernel, (ceil_div(param.numel(), flat.d),), flat.grad, param, mean, var, flat.square,
            flat.radial, norm, norm if rates is None else rates, bits, param.numel(), flat.d,
            0.0 if clip is None else clip, *numbers, BLOCK_D=flat.block, UNIT_ROWS=p.unit_rows,
            SPARSE=p.sparse_axis is not None, CLIP=clip is not None, ON_DEVICE=rates is not None,
            HAS_HALF=half is not None,
        )
        # tell autograd that they changed
        torch.autograd.graph.increment_version([p.param, p.exp_avg, p.exp_avg_sq])
        copies.written(p.param)
    return norm
