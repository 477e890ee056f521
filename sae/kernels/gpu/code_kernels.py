"""Triton kernels of the GPU backend that decode and score a selected code, and those of the optimiser.

Importing this file imports triton, so only files that launch kernels import it.

Rules for all kernels, which neither compiler nor interpreter enforces: loaded values are converted to fp32 at once (the
interpreter computes nonsense in bf16); masked loads give the value of masked lanes; offsets that grow with n_rows · d or
d_sae · d are int64; there are no atomic float additions, and every sum has a fixed order, so results are bitwise
reproducible.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_entries"])
@no_type_check
def entry_dots_kernel(
    row_ptr, feature_ptr, rows_ptr, weights_ptr, bias_ptr, extra_ptr, dot_ptr, n_entries, k, d,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, FIXED_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
):
    """`rows[row] · weights[feature]` of each entry, plus bias[feature] or extra[entry]. Grid (blocks of entries,)."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    inside = entry < n_entries
    feature = tl.load(feature_ptr + entry, mask=inside, other=0).to(tl.int64)
    row = entry // k if FIXED_K else tl.load(row_ptr + entry, mask=inside, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_ENTRIES, BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (column < d)[None, :]
        x = tl.load(rows_ptr + row[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weights_ptr + feature[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += x * w
    dot = tl.sum(total, axis=1)
    if HAS_BIAS:
        dot += tl.load(bias_ptr + feature, mask=inside, other=0.0)
    if HAS_EXTRA:
        dot += tl.load(extra_ptr + entry, mask=inside, other=0.0)
    tl.store(dot_ptr + entry, dot, mask=inside)


@triton.jit
@no_type_check
def decode_kernel(
    feature_ptr, value_ptr, bound_ptr, weights_ptr, bias_ptr, out_ptr, d, prefix_stride, n_prefixes, bound_stride,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, FIXED_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):
    """`Σ value · weights[feature]` of each row, stored at the end of each prefix. Grid (n_rows, tiles of d).

    The entries of a row start at bound[row · bound_stride], and those of its prefix p end at bound[row · bound_stride +
    p + 1]; FIXED_K: every row has bound_stride entries. `prefix_stride` is n_rows · d.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < d
    total = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0)
    place = row * d + column
    start = row * bound_stride
    bound_ptr += start
    if not FIXED_K:
        start = tl.load(bound_ptr)
    for prefix in range(n_prefixes):
        end = start + bound_stride if FIXED_K else tl.load(bound_ptr + prefix + 1)
        for first in range(start, end, BLOCK_ENTRIES):
            entry = first + tl.arange(0, BLOCK_ENTRIES)
            here = entry < end
            feature = tl.load(feature_ptr + entry, mask=here, other=0).to(tl.int64)
            value = tl.load(value_ptr + entry, mask=here, other=0.0).to(tl.float32)
            w = tl.load(
                weights_ptr + feature[:, None] * d + column[None, :], mask=here[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            total += tl.sum(value[:, None] * w, axis=0)
        tl.store(out_ptr + place, total, mask=inside)
        place += prefix_stride
        start = end


@triton.jit
@no_type_check
def grad_norm_kernel(
    grad_ptr, param_ptr, square_ptr, radial_ptr, n_elements, d, BLOCK_D: tl.constexpr, UNIT_ROWS: tl.constexpr
):
    """Squared norm of each row of the gradient, without its radial part for unit rows (also stored). Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    radial = 0.0
    if UNIT_ROWS:
        along = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, d, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = (column < d) & (row * d + column < n_elements)
            grad = tl.load(grad_ptr + row * d + column, mask=inside, other=0.0)
            along += grad * tl.load(param_ptr + row * d + column, mask=inside, other=0.0)
        radial = tl.sum(along, 0)
        tl.store(radial_ptr + row, radial)
    square = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < d) & (row * d + column < n_elements)
        grad = tl.load(grad_ptr + row * d + column, mask=inside, other=0.0)
        if UNIT_ROWS:
            grad -= radial * tl.load(param_ptr + row * d + column, mask=inside, other=0.0)
        square += grad * grad
    tl.store(square_ptr + row, tl.sum(square, 0))


@triton.jit
@no_type_check
def adam(grad, param, mean, var, lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps):
    """Parameter and moments after one step. rest1 = 1 − beta1 and rest2 = 1 − beta2 are computed in fp64 on the host to
    keep precision.
    """
    mean += rest1 * (grad - mean)
    var = var * beta2 + rest2 * grad * grad
    return param - lr_over_bias * mean / (tl.sqrt(var * one_over_bias2) + eps), mean, var


@triton.jit
@no_type_check
def bf16_bits(number):
    """bf16 bits of a number, rounded to nearest even (the interpreter's own cast truncates)."""
    bits = number.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(number != number, 0x7FC0, rounded).to(tl.int16)


@triton.jit
@no_type_check
def rates(rate_ptr, lr_over_bias, one_over_bias2, ON_DEVICE: tl.constexpr):
    """The two scalars of Adam that change every step: as given, or read from the device."""
    if ON_DEVICE:
        lr_over_bias = tl.load(rate_ptr)
        one_over_bias2 = tl.load(rate_ptr + 1)
    return lr_over_bias, one_over_bias2


@triton.jit
@no_type_check
def adam_kernel(
    grad_ptr, param_ptr, mean_ptr, var_ptr, square_ptr, radial_ptr, norm_ptr, rate_ptr, half_ptr, n_elements, d, clip,
    lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps, BLOCK_D: tl.constexpr, UNIT_ROWS: tl.constexpr,
    SPARSE: tl.constexpr, CLIP: tl.constexpr, ON_DEVICE: tl.constexpr, HAS_HALF: tl.constexpr,
):
    """One Adam step of each row; unit rows drop the radial part of the gradient and are renormalised. Grid (rows,).

    SPARSE: rows with a zero gradient are left unchanged. HAS_HALF: the bf16 copy is written too.
    """
    row = tl.program_id(0).to(tl.int64)
    scale = clip / tl.maximum(tl.load(norm_ptr), clip, propagate_nan=tl.PropagateNan.ALL) if CLIP else 1.0
    lr_over_bias, one_over_bias2 = rates(rate_ptr, lr_over_bias, one_over_bias2, ON_DEVICE)
    if SPARSE:
        n_elements = tl.where(tl.load(square_ptr + row) == 0, 0, n_elements)
    radial = 0.0
    if UNIT_ROWS:
        radial = tl.load(radial_ptr + row)
    square = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < d) & (row * d + column < n_elements)
        at = row * d + column
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
        param = tl.load(param_ptr + at, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
        var = tl.load(var_ptr + at, mask=inside, other=0.0)
        # threads may hold the same elements, so all must read before any writes
        tl.debug_barrier()
        if UNIT_ROWS:
            grad -= radial * param
        param, mean, var = adam(grad * scale, param, mean, var, lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps)
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(var_ptr + at, var, mask=inside)
        tl.store(param_ptr + at, param, mask=inside)
        if HAS_HALF and not UNIT_ROWS:
            tl.store(half_ptr + at, bf16_bits(param), mask=inside)
        square += tl.where(inside, param * param, 0.0)
    if UNIT_ROWS:
        norm = tl.maximum(tl.sqrt(tl.sum(square, 0)), 1e-12)
        # the rows just written are read again, possibly by other threads of the program
        tl.debug_barrier()
        for start in range(0, d, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = (column < d) & (row * d + column < n_elements)
            param = tl.load(param_ptr + row * d + column, mask=inside, other=0.0)
            tl.debug_barrier()
            param /= norm
            tl.store(param_ptr + row * d + column, param, mask=inside)
            if HAS_HALF:
                tl.store(half_ptr + row * d + column, bf16_bits(param), mask=inside)
