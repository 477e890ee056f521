"""Triton kernels that convert rows to operands of products and gathers.

See `sae.kernels.gpu.code_kernels` for the rules of all kernels.
"""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.code_kernels import bf16_bits


@triton.jit
@no_type_check
def e4m3_bits(number):
    """e4m3 bits of a number ≤ 448, rounded to nearest even, in integer arithmetic so that all devices agree."""
    bits = number.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # numbers below 2^-6 are rounded to multiples of 2^-9 by adding 1.5 · 2^23
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
    """x − b in fp32, as bf16 bits, and as e4m3 bits with a scale per row, as requested. Grid (n_rows,)."""
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
        inverse = 1.0 / scale
        for start in range(0, d, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            x = tl.load(x_ptr + row * d + column, mask=column < d, other=0.0).to(tl.float32)
            if HAS_BIAS:
                x -= tl.load(b_ptr + column, mask=column < d, other=0.0)
            tl.store(eight_ptr + row * d + column, e4m3_bits(x * inverse), mask=column < d)


@triton.jit
@no_type_check
def segments_kernel(
    grad_ptr, out_ptr, sum_ptr, n_rows, d, n_prefixes, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, HALF: tl.constexpr,
):
    """Suffix sums over prefixes of gradients `[n_prefixes, n_rows, d]`, in fp32 or as bf16 bits.

    Also sums the first of these over blocks of ROWS rows, `sum [n_blocks, d]`. Grid (blocks of rows, tiles of d).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (row < n_rows)[:, None] & (column < d)[None, :]
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for back in range(1, n_prefixes + 1):
        at = ((n_prefixes - back) * n_rows + row)[:, None] * d + column[None, :]
        total += tl.load(grad_ptr + at, mask=inside, other=0.0)
        tl.store(out_ptr + at, bf16_bits(total) if HALF else total, mask=inside)
    tl.store(sum_ptr + tl.program_id(0).to(tl.int64) * d + column, tl.sum(total, 0), mask=column < d)
