"""The Triton kernel that makes rows ready for a product: see `sae.kernels.gpu.code_kernels` for the rules all follow."""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.code_kernels import bf16_bits


@triton.jit
@no_type_check
def e4m3_bits(number):
    """The bits of a number of at most 448 rounded to e4m3, nearest even, in plain integers: as every device does it."""
    bits = number.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # below 2^-6 they are multiples of 2^-9, which an addition of 1.5 · 2^23 rounds to
    small = (tl.abs(number) * 512.0 + 12582912.0).to(tl.int32, bitcast=True) & 0xF
    magnitude = tl.minimum(tl.where(bits < (121 << 23), small, normal), 0x7E)
    magnitude = tl.where(number != number, 0x7F, magnitude)
    return (magnitude | tl.where(number < 0, 0x80, 0)).to(tl.int8)


@triton.jit
@no_type_check
def operand_kernel(
    x_ptr, b_ptr, out_ptr, half_ptr, eight_ptr, scale_ptr, d, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    WRITE_OUT: tl.constexpr, WRITE_HALF: tl.constexpr, WRITE_EIGHT: tl.constexpr,
):
    """x − b in fp32, the bits of it in bf16, and in e4m3 with each row's scale: those that are wanted. Grid (n_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + row * d + column, mask=column < d, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x -= tl.load(b_ptr + column, mask=column < d, other=0.0)
        if WRITE_OUT:
            tl.store(out_ptr + row * d + column, x, mask=column < d)
        if WRITE_HALF:
            tl.store(half_ptr + row * d + column, bf16_bits(x), mask=column < d)
        largest = tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
    if WRITE_EIGHT:
        scale = tl.maximum(tl.max(largest, 0) / 448.0, 1e-30)
        tl.store(scale_ptr + row, scale)
        for start in range(0, d, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            x = tl.load(x_ptr + row * d + column, mask=column < d, other=0.0).to(tl.float32)
            if HAS_BIAS:
                x -= tl.load(b_ptr + column, mask=column < d, other=0.0)
            tl.store(eight_ptr + row * d + column, e4m3_bits(x / scale), mask=column < d)
