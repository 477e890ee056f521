"""Operands of products on the GPU: rows and weights in bf16, or in e4m3 with a scale per row."""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from sae.kernels.gpu import operand_kernels as kernels
from sae.kernels.gpu.launch import ceil_div, launch, power_of_2


@dataclass(frozen=True)
class Eight:
    """A matrix in e4m3 with a scale per row."""

    bits: Tensor
    scale: Float32[Tensor, "n 1"]

    def rows(self, part: slice) -> "Eight":
        """Slice of rows."""
        return Eight(self.bits[part], self.scale[part])

    def times(self, other: "Eight") -> BFloat16[Tensor, "n m"]:
        """self @ other.t() with the device's fp8 accumulation, rounded to bf16."""
        if self.bits.is_cuda:
            return torch._scaled_mm(
                self.bits, other.bits.t(), self.scale, other.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )
        return ((self.bits.float() @ other.bits.float().t()) * self.scale * other.scale.t()).bfloat16()


@dataclass(frozen=True)
class Rows:
    """Input rows minus b_pre, in fp32 and in operand precision."""

    x: Float32[Tensor, "n_rows d"]
    operand: Float[Tensor, "n_rows d"]
    eight: Eight | None = None


def _launch(x: Tensor, b: Tensor | None, out: Tensor | None, half: Tensor | None, eight: Eight | None) -> None:
    n_rows, d = x.shape
    launch(
        kernels.operand_kernel, (n_rows,), x, x if b is None else b, x if out is None else out,
        x if half is None else half.view(torch.int16), x if eight is None else eight.bits.view(torch.int8),
        x if eight is None else eight.scale, d, BLOCK_D=min(1024, max(16, power_of_2(d))), HAS_BIAS=b is not None,
        WRITE_OUT=out is not None, WRITE_HALF=half is not None, WRITE_EIGHT=eight is not None,
    )


def _empty_eight(x: Tensor) -> Eight:
    return Eight(
        torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device), torch.empty(x.shape[0], 1, device=x.device)
    )


def prepared(x: Float32[Tensor, "n_rows d"], b_pre: Float32[Tensor, " d"] | None, bf16: bool, eight: bool) -> Rows:
    """Prepare input rows in one pass over them."""
    if not bf16:
        x = x if b_pre is None else x - b_pre
        return Rows(x, x)
    out = x if b_pre is None else torch.empty_like(x)
    half = torch.empty_like(x, dtype=torch.bfloat16)
    bits = _empty_eight(x) if eight else None
    _launch(x, b_pre, None if b_pre is None else out, half, bits)
    return Rows(out, half, bits)


def in_eight(W: Float[Tensor, "n d"]) -> Eight:
    """Convert a matrix to e4m3."""
    eight = _empty_eight(W)
    _launch(W, None, None, None, eight)
    return eight


def segments(
    dx_hat: Float32[Tensor, "n_prefixes n_rows d"], covers_all: bool, bf16: bool
) -> tuple[Float[Tensor, "n_segments n_rows d"], Float32[Tensor, " d"]]:
    """Gradients of the contributions of features between two prefix ends, and that of the bias.

    A segment gets the gradients of all prefixes that contain it. If the prefixes do not cover all features, the last
    segment is zero.
    """
    n_prefixes, n_rows, d = dx_hat.shape
    if n_prefixes == 1 and covers_all and not bf16:
        return dx_hat.contiguous(), dx_hat.sum((0, 1))
    dx_hat = dx_hat.contiguous()
    out = torch.empty(
        n_prefixes + (not covers_all), n_rows, d, dtype=torch.bfloat16 if bf16 else torch.float32, device=dx_hat.device
    )
    block = min(256, max(16, power_of_2(d)))
    sums = torch.empty(ceil_div(n_rows, 16), d, device=dx_hat.device)
    launch(
        kernels.segments_kernel, (sums.shape[0], ceil_div(d, block)), dx_hat, out.view(torch.int16) if bf16 else out, sums,
        n_rows, d, n_prefixes, ROWS=16, BLOCK_D=block, HALF=bf16,
    )
    if not covers_all:
        out[-1].zero_()
    return out, sums.sum(0)
