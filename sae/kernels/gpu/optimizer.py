"""The optimiser step of the GPU backend: how its two Triton kernels are launched."""

import torch
from jaxtyping import Float32
from torch import Tensor

from sae.kernels.gpu import code_kernels as kernels
from sae.kernels.gpu.fused import Waiting, claim, fused_step
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2
from sae.kernels.interface import ParamState


def _flat(tensor: Tensor, like: Tensor) -> Float32[Tensor, " n"]:
    """A tensor's elements in the order in which `like` lies in memory (a view where it lies the same way)."""
    feature_major = like.dim() == 2 and not like.is_contiguous()
    return (tensor.t() if feature_major else tensor).reshape(-1)


def _in_place(tensor: Tensor, like: Tensor) -> Float32[Tensor, " n"]:
    """`_flat`, of what is to be written."""
    flat = _flat(tensor, like)
    assert flat.data_ptr() == tensor.data_ptr(), "a parameter and its moments lie densely and in the same way"
    return flat


def _row_length(p: ParamState) -> int:
    """How many elements, as they lie in memory, one program of the optimiser takes: a feature, where they matter."""
    if p.sparse_axis is None:
        return p.param.shape[1] if p.unit_rows else 4096
    lies_by_feature = p.param.dim() == 1 or (p.sparse_axis == 0) == p.param.is_contiguous()
    assert lies_by_feature, "parameters by feature lie feature after feature: see sae.kernels"
    return p.param.numel() // p.param.shape[p.sparse_axis]


def optimizer_step(
    params: list[ParamState], waiting: list[Waiting], *, step: int, lr: float, betas: tuple[float, float], eps: float,
    clip: float | None, rates: Float32[Tensor, "2"] | None = None,
) -> Float32[Tensor, ""]:
    """One Adam step, see `sae.kernels.Backend`. Two passes over the gradients (norm, step), no wait for the device.

    What waits is stepped with what its gradients are made of, or has its gradients made first.
    """
    claimed = claim(waiting, params)
    numbers = (
        lr / (1 - betas[0] ** step), 1 - betas[0], betas[1], 1 - betas[1], 1 / (1 - betas[1] ** step), eps,
    )
    live = [(p, p.param.grad, _row_length(p)) for p in params if p.param.grad is not None]
    lengths = [ceil_div(p.param.numel(), d) for p, _, d in live]
    squares = torch.empty(sum(lengths), device=params[0].param.device)
    work = []
    for (p, p_grad, d), square in zip(live, squares.split(lengths), strict=True):
        grad, param = _flat(p_grad, p.param), _in_place(p.param, p.param)
        radial = torch.empty_like(square) if p.unit_rows else grad
        block = min(1024, max(16, power_of_2(d)))
        launch(
            kernels.grad_norm_kernel, (square.numel(),), grad, param, square, radial, param.numel(), d, BLOCK_D=block,
            UNIT_ROWS=p.unit_rows,
        )
        work.append((p, d, block, grad, square, radial))
    total = squares.sum()
    if claimed is not None:
        total = total + claimed[0].squares(claimed[2].unit_rows)
    norm = total.sqrt()
    if claimed is not None:
        fused_step(*claimed, norm, clip, numbers, rates)
    for p, d, block, grad, square, radial in work:
        param, mean, var = (_in_place(t, p.param) for t in (p.param, p.exp_avg, p.exp_avg_sq))
        launch(
            kernels.adam_kernel, (square.numel(),), grad, param, mean, var, square, radial, norm,
            norm if rates is None else rates, param.numel(), d, 0.0 if clip is None else clip, *numbers, BLOCK_D=block, UNIT_ROWS=p.unit_rows,
            SPARSE=p.sparse_axis is not None, CLIP=clip is not None, ON_DEVICE=rates is not None,
        )
        # autograd has to learn that they changed
        torch.autograd.graph.increment_version([p.param, p.exp_avg, p.exp_avg_sq])
    return norm
