"""Rows and weights as the products read them, on the GPU: bf16, and e4m3 with a scale for each row."""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from sae.kernels.gpu import operand_kernels as kernels
from sae.kernels.gpu.launch import launch, power_of_2


@dataclass(frozen=True)
class Eight:
    """A matrix in e4m3: each row is to be multiplied by its scale."""

    bits: Tensor
    scale: Float32[Tensor, "n 1"]

    def rows(self, part: slice) -> "Eight":
        """Some of its rows."""
        return Eight(self.bits[part], self.scale[part])

    def times(self, other: "Eight") -> BFloat16[Tensor, "n m"]:
        """self @ other.t(), accumulated as the device does in 8 bits, rounded to bf16."""
        if self.bits.is_cuda:
            return torch._scaled_mm(
                self.bits, other.bits.t(), self.scale, other.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )
        return ((self.bits.float() @ other.bits.float().t()) * self.scale * other.scale.t()).bfloat16()


@dataclass(frozen=True)
class Rows:
    """Input rows, b_pre taken off, in fp32 and as products read them."""

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
    """Input rows, in one pass over them."""
    if not bf16:
        x = x if b_pre is None else x - b_pre
        return Rows(x, x)
    out = x if b_pre is None else torch.empty_like(x)
    half = torch.empty_like(x, dtype=torch.bfloat16)
    bits = _empty_eight(x) if eight else None
    _launch(x, b_pre, None if b_pre is None else out, half, bits)
    return Rows(out, half, bits)


def in_eight(W: Float[Tensor, "n d"]) -> Eight:
    """A matrix in e4m3."""
    eight = _empty_eight(W)
    _launch(W, None, None, None, eight)
    return eight
