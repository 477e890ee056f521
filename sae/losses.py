"""Loss terms: pure functions, summed over `d_out` or features and averaged over rows, so independent of the batch size."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sae.code import SparseCode

_SUM = 2
"""ATen's code for sum reduction."""


def reconstruction(
    target: Float[Tensor, "n_rows d_out"], x_hat: Float[Tensor, "n_rows d_out"],
    weight: Float[Tensor, "n_rows d_out"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error ‖target − x_hat‖², mean over rows; with weights, Σ weight (target − x_hat)² per row."""
    if weight is not None:
        return (weight * (target - x_hat).square()).sum() / len(target)
    # fused: one pass for the value and one for the gradient instead of five
    return functional.mse_loss(x_hat, target, reduction="sum") / len(target)


class _Reconstructions(torch.autograd.Function):
    """See `reconstructions`."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, x_hats: Tensor) -> Tensor:
        """Stack the losses."""
        ctx.save_for_backward(target, x_hats)
        return torch.stack([reconstruction(target, x_hat) for x_hat in x_hats])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        """Write each gradient into its slice of the output."""
        target, x_hats = ctx.saved_tensors
        out, scales = torch.empty_like(x_hats), grads[0] / len(target)
        for scale, x_hat, place in zip(scales, x_hats, out, strict=True):
            torch.ops.aten.mse_loss_backward.grad_input(scale, x_hat, target, _SUM, grad_input=place)
        return -out.sum(0) if ctx.needs_input_grad[0] else None, out


def reconstructions(
    target: Float[Tensor, "n_rows d_out"], x_hats: Float[Tensor, "n_prefixes n_rows d_out"],
    weight: Float[Tensor, "n_rows d_out"] | None = None,
) -> Float[Tensor, " n_prefixes"]:
    """`reconstruction` of each prefix; without weights, gradients are written in place, not stacked by a copy."""
    if weight is not None:
        return torch.stack([reconstruction(target, x_hat, weight) for x_hat in x_hats.unbind()])
    return _Reconstructions.apply(target, x_hats)


def l1(code: SparseCode, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """Σ |value| · ‖W_dec[feature]‖, mean over rows.

    The norm keeps the model from escaping the penalty with small activations and long decoder rows (Conerly et al.,
    "Update on how we train SAEs", Anthropic, April 2024).
    """
    # sum by feature first: the backward of norms[feature] would be a non-deterministic scatter-add
    return (code.sums(code.value.abs()) * norms).sum() / code.n_rows


def auxk(
    residual: Float[Tensor, "n_rows d_out"], aux_hat: Float[Tensor, "n_rows d_out"],
    weight: Float[Tensor, "n_rows d_out"] | None = None,
) -> Float[Tensor, ""]:
    """‖e − ê‖² of Gao et al. (2406.04093, §A.2), mean over rows; weighted like `reconstruction`.

    e is the reconstruction error, detached: dead features learn to fit the error of the live ones, and the live ones are
    not trained to increase it.
    """
    return reconstruction(residual.detach(), aux_hat, weight)
