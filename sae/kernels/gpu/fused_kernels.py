"""Triton kernels that update W_enc and W_dec without storing their gradients.

See `sae.kernels.gpu.code_kernels` for the rules of all kernels and `sae.kernels.gpu.backward_kernels` for how work is
partitioned.
"""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.backward_kernels import SIZES, find_piece, sum_entries, sum_parts
from sae.kernels.gpu.code_kernels import adam, rates


@triton.jit
@no_type_check
def left_row(left_row_ptr, left_ptr, feature, column, d, BLOCK_D: tl.constexpr, HAS_LEFT: tl.constexpr):
    """A feature's gradient from AuxK (row left_row[f] of its gradients, −1 for none)."""
    left = tl.zeros([BLOCK_D], tl.float32)
    if HAS_LEFT:
        row = tl.load(left_row_ptr + feature).to(tl.int64)
        left += tl.load(left_ptr + row * d + column, mask=column < tl.where(row >= 0, d, 0), other=0.0)
    return left


@triton.jit
@no_type_check
def store_stats(
    feature, grad_enc, grad_dec, grad_b, column_in, column_out, left_row_ptr, left_enc_ptr, left_dec_ptr, W_ptr, db_ptr,
    stat_ptr, d_sae, d_in, d_out, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, HAS_LEFT: tl.constexpr,
):
    """Store db_enc of a feature, and four statistics of its gradients.

    These are ‖dW_enc‖², ‖dW_dec‖², the component r of dW_dec along its row w, and ‖dW_dec − r w‖².
    """
    grad_enc += left_row(left_row_ptr, left_enc_ptr, feature, column_in, d_in, BLOCK_IN, HAS_LEFT)
    grad_dec += left_row(left_row_ptr, left_dec_ptr, feature, column_out, d_out, BLOCK_OUT, HAS_LEFT)
    w = tl.load(W_ptr + feature * d_out + column_out, mask=column_out < d_out, other=0.0)
    radial = tl.sum(grad_dec * w, 0)
    across = grad_dec - radial * w
    tl.store(stat_ptr + feature, tl.sum(grad_enc * grad_enc, 0))
    tl.store(stat_ptr + d_sae + feature, tl.sum(grad_dec * grad_dec, 0))
    tl.store(stat_ptr + 2 * d_sae + feature, radial)
    tl.store(stat_ptr + 3 * d_sae + feature, tl.sum(across * across, 0))
    tl.store(db_ptr + feature, grad_b)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def grad_stats_kernel(
    feature_ptr, first_ptr, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr, end_ptr, x_ptr, dy_ptr, decoder_ptr,
    left_row_ptr, left_enc_ptr, left_dec_ptr, W_ptr, db_ptr, stat_ptr, part_enc_ptr, part_dec_ptr, part_b_ptr,
    n_windows, n_entries, k, n_ends, dy_stride, d_sae, d_in, d_out, CHUNK: tl.constexpr, BLOCK_ENTRIES: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, FIXED_K: tl.constexpr, HAS_EXTRA: tl.constexpr,
    HAS_LEFT: tl.constexpr,
):
    """Value gradients and statistics of each feature; partial sums of hot features are stored. Grid (items,)."""
    item = tl.program_id(0)
    feature, start, end = find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        column_in, column_out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        grad_enc, grad_dec, grad_b = sum_entries(
            feature, start, end, column_in, column_out, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr, end_ptr,
            x_ptr, dy_ptr, decoder_ptr, k, n_ends, dy_stride, d_in, d_out, BLOCK_ENTRIES, BLOCK_IN, BLOCK_OUT, True,
            FIXED_K, HAS_EXTRA,
        )
        if item >= 2 * n_windows:
            store_stats(
                feature, grad_enc, grad_dec, grad_b, column_in, column_out, left_row_ptr, left_enc_ptr, left_dec_ptr,
                W_ptr, db_ptr, stat_ptr, d_sae, d_in, d_out, BLOCK_IN, BLOCK_OUT, HAS_LEFT,
            )
        else:
            part = item.to(tl.int64)
            tl.store(part_enc_ptr + part * d_in + column_in, grad_enc, mask=column_in < d_in)
            tl.store(part_dec_ptr + part * d_out + column_out, grad_dec, mask=column_out < d_out)
            tl.store(part_b_ptr + part, grad_b)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def hot_stats_kernel(
    feature_ptr, first_ptr, left_row_ptr, left_enc_ptr, left_dec_ptr, W_ptr, db_ptr, stat_ptr, part_enc_ptr,
    part_dec_ptr, part_b_ptr, n_windows, n_entries, d_sae, d_in, d_out, CHUNK: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr, HAS_LEFT: tl.constexpr,
):
    """Statistics of the hot feature that starts in a window, if any. Grid (windows,)."""
    window = tl.program_id(0).to(tl.int64)
    feature, _, _ = find_piece(feature_ptr, first_ptr, 2 * window + 1, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        last = (tl.load(first_ptr + feature + 1) - 1) // CHUNK
        column_in, column_out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        grad_enc = sum_parts(part_enc_ptr, column_in, window, last, d_in, BLOCK_IN)
        grad_dec = sum_parts(part_dec_ptr, column_out, window, last, d_out, BLOCK_OUT)
        grad_b = tl.sum(sum_parts(part_b_ptr, tl.arange(0, 16), window, last, 1, 16), 0)
        store_stats(
            feature, grad_enc, grad_dec, grad_b, column_in, column_out, left_row_ptr, left_enc_ptr, left_dec_ptr, W_ptr,
            db_ptr, stat_ptr, d_sae, d_in, d_out, BLOCK_IN, BLOCK_OUT, HAS_LEFT,
        )


@triton.jit
@no_type_check
def step_row(
    grad, param_ptr, mean_ptr, var_ptr, square_ptr, feature, column, d, radial, scale, lr_over_bias, rest1, beta2, rest2,
    one_over_bias2, eps, UNIT_ROWS: tl.constexpr, SPARSE: tl.constexpr,
):
    """One Adam step of a row held in one tile; for unit rows, the radial part is removed and the row renormalised."""
    inside = column < (tl.where(tl.load(square_ptr + feature) == 0, 0, d) if SPARSE else d)
    at = feature * d + column
    param = tl.load(param_ptr + at, mask=inside, other=0.0)
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    var = tl.load(var_ptr + at, mask=inside, other=0.0)
    # threads may hold the same elements: all have read before one writes
    tl.debug_barrier()
    if UNIT_ROWS:
        grad -= radial * param
    param, mean, var = adam(grad * scale, param, mean, var, lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps)
    if UNIT_ROWS:
        param /= tl.maximum(tl.sqrt(tl.sum(tl.where(inside, param * param, 0.0), 0)), 1e-12)
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(var_ptr + at, var, mask=inside)
    tl.store(param_ptr + at, param, mask=inside)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def fused_adam_kernel(
    feature_ptr, first_ptr, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr, end_ptr, x_ptr, dy_ptr, decoder_ptr,
    left_row_ptr, left_enc_ptr, left_dec_ptr, W_enc_ptr, mean_enc_ptr, var_enc_ptr, W_dec_ptr, mean_dec_ptr, var_dec_ptr,
    stat_ptr, part_enc_ptr, part_dec_ptr, norm_ptr, rate_ptr, n_windows, n_entries, k, n_ends,
    dy_stride, d_sae, d_in, d_out, clip, lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps, CHUNK: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, FIXED_K: tl.constexpr,
    HAS_EXTRA: tl.constexpr, HAS_LEFT: tl.constexpr, UNIT_ROWS: tl.constexpr, SPARSE: tl.constexpr, CLIP: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """One Adam step of both rows of a feature, recomputing its gradients. Grid (items,).

    The partial sums of a hot feature are already stored; the program of the window in which it starts adds them up.
    """
    item = tl.program_id(0)
    feature, start, end = find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK)
    if (feature < d_sae) & ((item >= 2 * n_windows) | (item % 2 == 1)):
        column_in, column_out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        if item >= 2 * n_windows:
            grad_enc, grad_dec, _ = sum_entries(
                feature, start, end, column_in, column_out, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr,
                end_ptr, x_ptr, dy_ptr, decoder_ptr, k, n_ends, dy_stride, d_in, d_out, BLOCK_ENTRIES, BLOCK_IN,
                BLOCK_OUT, False, FIXED_K, HAS_EXTRA,
            )
        else:
            window = (item // 2).to(tl.int64)
            last = (tl.load(first_ptr + feature + 1) - 1) // CHUNK
            grad_enc = sum_parts(part_enc_ptr, column_in, window, last, d_in, BLOCK_IN)
            grad_dec = sum_parts(part_dec_ptr, column_out, window, last, d_out, BLOCK_OUT)
        grad_enc += left_row(left_row_ptr, left_enc_ptr, feature, column_in, d_in, BLOCK_IN, HAS_LEFT)
        grad_dec += left_row(left_row_ptr, left_dec_ptr, feature, column_out, d_out, BLOCK_OUT, HAS_LEFT)
        scale = clip / tl.maximum(tl.load(norm_ptr), clip, propagate_nan=tl.PropagateNan.ALL) if CLIP else 1.0
        lr_over_bias, one_over_bias2 = rates(rate_ptr, lr_over_bias, one_over_bias2, ON_DEVICE)
        radial = tl.load(stat_ptr + 2 * d_sae + feature) if UNIT_ROWS else 0.0
        square_dec_ptr = stat_ptr + (3 * d_sae if UNIT_ROWS else d_sae)
        step_row(
            grad_enc, W_enc_ptr, mean_enc_ptr, var_enc_ptr, stat_ptr, feature, column_in, d_in, 0.0, scale,
            lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps, False, SPARSE,
        )
        step_row(
            grad_dec, W_dec_ptr, mean_dec_ptr, var_dec_ptr, square_dec_ptr, feature, column_out, d_out, radial, scale,
            lr_over_bias, rest1, beta2, rest2, one_over_bias2, eps, UNIT_ROWS, SPARSE,
        )
