"""The Triton kernels that sum weight gradients and write them to memory.

See `sae.kernels.gpu.code_kernels` for the rules that all follow and `sae.kernels.gpu.backward_kernels` for how the work
is cut. The decoder's rows come first, whole, for the gradient of a value is a dot product over all of a row; the
encoder's follow tile by tile of columns, so that one tile of x is gathered from cache. Either pass also leaves what the
optimiser would have to read the gradients again for: their squared norms, and the part along a decoder row.

Rows of the statistics `stat [n_tiles + 3, d_sae]`: ‖dW_dec − r w‖², one row per tile with that tile's part of
‖dW_enc‖², ‖dW_dec‖², and r = ⟨dW_dec, w⟩, where w is the decoder row as the products read it.
"""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.backward_kernels import SIZES, find_piece, segment_of, sum_parts


@triton.jit
@no_type_check
def load_rows(rows_ptr, row, here, column, d):
    """These columns of several rows in fp32, zeros beyond d and where an entry is not `here`."""
    mask = here[:, None] & (column < d)[None, :]
    return tl.load(rows_ptr + row[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def entries_at(order_ptr, row_ptr, entry, here, k, FIXED_K: tl.constexpr):
    """Position and row of sorted entries."""
    position = tl.load(order_ptr + entry, mask=here, other=0)
    if FIXED_K:
        row = (position.to(tl.int32) // k).to(tl.int64)
    else:
        row = tl.load(row_ptr + position, mask=here, other=0).to(tl.int64)
    return position, row


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def decoder_grads_kernel(
    feature_ptr, first_ptr, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr, end_ptr, dy_ptr, W_dec_ptr,
    dW_dec_ptr, stat_ptr, part_ptr, n_windows, n_entries, k, n_ends, dy_stride, n_tiles, d_sae, d, CHUNK: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, FIXED_K: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
):
    """dvalue = ⟨dy, W_dec[f]⟩ + extra of each entry and dW_dec[f] = Σ value · dy, with its statistics. Grid (items,).

    A row is held as BLOCK_A columns and the BLOCK_B after these (0: there are none), so that little width is idle.
    """
    item = tl.program_id(0)
    feature, start, end = find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        dy_ptr += segment_of(end_ptr, n_ends, feature) * dy_stride
        column_a = tl.arange(0, BLOCK_A)
        w_a = tl.load(W_dec_ptr + feature * d + column_a, mask=column_a < d, other=0.0).to(tl.float32)
        grad_a = tl.zeros([BLOCK_A], tl.float32)
        if BLOCK_B > 0:
            column_b = BLOCK_A + tl.arange(0, BLOCK_B)
            w_b = tl.load(W_dec_ptr + feature * d + column_b, mask=column_b < d, other=0.0).to(tl.float32)
            parts_b = tl.zeros([BLOCK_ENTRIES, BLOCK_B], tl.float32)
        for first in range(start, end, BLOCK_ENTRIES):
            entry = first + tl.arange(0, BLOCK_ENTRIES)
            here = entry < end
            position, row = entries_at(order_ptr, row_ptr, entry, here, k, FIXED_K)
            dy_a = load_rows(dy_ptr, row, here, column_a, d)
            if BLOCK_B > 0:
                dy_b = load_rows(dy_ptr, row, here, column_b, d)
            value = tl.load(value_ptr + position, mask=here, other=0.0)
            dvalue = tl.sum(dy_a * w_a[None, :], axis=1)
            grad_a += tl.sum(value[:, None] * dy_a, axis=0)
            if BLOCK_B > 0:
                dvalue += tl.sum(dy_b * w_b[None, :], axis=1)
                parts_b += value[:, None] * dy_b
            if HAS_EXTRA:
                dvalue += tl.load(extra_ptr + position, mask=here, other=0.0)
            tl.store(dvalue_ptr + position, dvalue, mask=here)
        if BLOCK_B > 0:
            grad_b = tl.sum(parts_b, 0)
        if item < 2 * n_windows:
            part_ptr += item.to(tl.int64) * d
            tl.store(part_ptr + column_a, grad_a, mask=column_a < d)
            if BLOCK_B > 0:
                tl.store(part_ptr + column_b, grad_b, mask=column_b < d)
        else:
            dW_dec_ptr += feature * d
            tl.store(dW_dec_ptr + column_a, grad_a, mask=column_a < d)
            if BLOCK_B > 0:
                tl.store(dW_dec_ptr + column_b, grad_b, mask=column_b < d)
            radial = tl.sum(grad_a * w_a, 0)
            square = tl.sum(grad_a * grad_a, 0)
            if BLOCK_B > 0:
                radial += tl.sum(grad_b * w_b, 0)
                square += tl.sum(grad_b * grad_b, 0)
            across = tl.sum((grad_a - radial * w_a) * (grad_a - radial * w_a), 0)
            if BLOCK_B > 0:
                across += tl.sum((grad_b - radial * w_b) * (grad_b - radial * w_b), 0)
            store_decoder_stats(stat_ptr, feature, across, square, radial, n_tiles, d_sae)


@triton.jit
@no_type_check
def store_decoder_stats(stat_ptr, feature, across, square, radial, n_tiles, d_sae):
    """The three rows of the statistics that are the decoder's."""
    tl.store(stat_ptr + feature, across)
    tl.store(stat_ptr + (n_tiles + 1) * d_sae + feature, square)
    tl.store(stat_ptr + (n_tiles + 2) * d_sae + feature, radial)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def row_sums_kernel(
    feature_ptr, first_ptr, order_ptr, row_ptr, weight_ptr, end_ptr, rows_ptr, out_ptr, sum_ptr, square_ptr, part_ptr,
    part_sum_ptr, n_windows, n_entries, k, n_ends, rows_stride, d_sae, d, CHUNK: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, FIXED_K: tl.constexpr, HAS_SUM: tl.constexpr,
    HAS_SQUARE: tl.constexpr,
):
    """Σ weight · rows[row] over the entries of each feature, one tile of columns. Grid (items, tiles of d).

    HAS_SUM: also Σ weight. HAS_SQUARE: also the squared norm of each tile, `square [n_tiles, d_sae]`.
    """
    item, tile = tl.program_id(0), tl.program_id(1)
    feature, start, end = find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        rows_ptr += segment_of(end_ptr, n_ends, feature) * rows_stride
        column = tile * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], tl.float32)
        weights = tl.zeros([BLOCK_ENTRIES], tl.float32)
        for first in range(start, end, BLOCK_ENTRIES):
            entry = first + tl.arange(0, BLOCK_ENTRIES)
            here = entry < end
            position, row = entries_at(order_ptr, row_ptr, entry, here, k, FIXED_K)
            rows = load_rows(rows_ptr, row, here, column, d)
            weight = tl.load(weight_ptr + position, mask=here, other=0.0)
            total += tl.sum(weight[:, None] * rows, axis=0)
            weights += weight
        part = item.to(tl.int64)
        if item >= 2 * n_windows:
            tl.store(out_ptr + feature * d + column, total, mask=column < d)
            if HAS_SUM:
                tl.store(sum_ptr + feature, tl.sum(weights, 0), mask=tile == 0)
            if HAS_SQUARE:
                tl.store(square_ptr + tile * d_sae + feature, tl.sum(total * total, 0))
        else:
            tl.store(part_ptr + part * d + column, total, mask=column < d)
            if HAS_SUM:
                tl.store(part_sum_ptr + part, tl.sum(weights, 0), mask=tile == 0)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def sum_parts_kernel(
    feature_ptr, first_ptr, part_enc_ptr, part_dec_ptr, part_b_ptr, dW_enc_ptr, dW_dec_ptr, db_enc_ptr, stat_ptr,
    n_windows, n_entries, d_sae, d_in, d_out, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, HAS_STATS: tl.constexpr,
):
    """The gradients of the hot feature that begins in a window, if one does. Grid (windows, tiles of d)."""
    window, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    feature, _, _ = find_piece(feature_ptr, first_ptr, 2 * window + 1, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        last = (tl.load(first_ptr + feature + 1) - 1) // CHUNK
        column = tile * BLOCK_D + tl.arange(0, BLOCK_D)
        enc = sum_parts(part_enc_ptr, column, window, last, d_in, BLOCK_D)
        tl.store(dW_enc_ptr + feature * d_in + column, enc, mask=column < d_in)
        if HAS_STATS:
            tl.store(stat_ptr + (tile + 1) * d_sae + feature, tl.sum(enc * enc, 0), mask=tile * BLOCK_D < d_in)
        dec = sum_parts(part_dec_ptr, column, window, last, d_out, BLOCK_D)
        tl.store(dW_dec_ptr + feature * d_out + column, dec, mask=column < d_out)
        b = sum_parts(part_b_ptr, column, window, last, 1, BLOCK_D)
        tl.store(db_enc_ptr + feature + column, b, mask=column < 1)


@triton.jit
@no_type_check
def row_stats(grad_ptr, w_ptr, d, BLOCK_D: tl.constexpr):
    """‖g − r w‖², ‖g‖² and r = ⟨g, w⟩ of one row of a gradient in memory."""
    along = tl.zeros([BLOCK_D], tl.float32)
    squares = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        grad = tl.load(grad_ptr + column, mask=column < d, other=0.0)
        along += grad * tl.load(w_ptr + column, mask=column < d, other=0.0).to(tl.float32)
        squares += grad * grad
    radial = tl.sum(along, 0)
    across = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        grad = tl.load(grad_ptr + column, mask=column < d, other=0.0)
        grad -= radial * tl.load(w_ptr + column, mask=column < d, other=0.0).to(tl.float32)
        across += grad * grad
    return tl.sum(across, 0), tl.sum(squares, 0), radial


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def hot_decoder_stats_kernel(
    feature_ptr, first_ptr, dW_dec_ptr, W_dec_ptr, stat_ptr, n_windows, n_entries, n_tiles, d_sae, d,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """The decoder's statistics of the hot feature that begins in a window, if one does. Grid (windows,)."""
    window = tl.program_id(0).to(tl.int64)
    feature, _, _ = find_piece(feature_ptr, first_ptr, 2 * window + 1, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        across, square, radial = row_stats(dW_dec_ptr + feature * d, W_dec_ptr + feature * d, d, BLOCK_D)
        store_decoder_stats(stat_ptr, feature, across, square, radial, n_tiles, d_sae)


@triton.jit
@no_type_check
def add_left_kernel(
    id_ptr, left_enc_ptr, left_dec_ptr, left_b_ptr, dW_enc_ptr, dW_dec_ptr, db_enc_ptr, W_dec_ptr, stat_ptr, n_tiles,
    d_sae, d_in, d_out, BLOCK_D: tl.constexpr, TILE: tl.constexpr, HAS_STATS: tl.constexpr,
):
    """Add the gradients of some features, `left [n_ids, …]`, to those of all, and renew their statistics. Grid (n_ids,).

    No feature is named twice; an id of d_sae names none.
    """
    at = tl.program_id(0).to(tl.int64)
    feature = tl.load(id_ptr + at).to(tl.int64)
    if feature < d_sae:
        for tile in range(0, tl.cdiv(d_in, TILE)):
            square = tl.zeros([BLOCK_D], tl.float32)
            for start in range(0, TILE, BLOCK_D):
                column = tile * TILE + start + tl.arange(0, BLOCK_D)
                inside = column < d_in
                grad = tl.load(dW_enc_ptr + feature * d_in + column, mask=inside, other=0.0)
                grad += tl.load(left_enc_ptr + at * d_in + column, mask=inside, other=0.0)
                # threads may hold the same elements: all have read before one writes
                tl.debug_barrier()
                tl.store(dW_enc_ptr + feature * d_in + column, grad, mask=inside)
                square += grad * grad
            if HAS_STATS:
                tl.store(stat_ptr + (tile + 1) * d_sae + feature, tl.sum(square, 0))
        for start in range(0, d_out, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = column < d_out
            grad = tl.load(dW_dec_ptr + feature * d_out + column, mask=inside, other=0.0)
            grad += tl.load(left_dec_ptr + at * d_out + column, mask=inside, other=0.0)
            tl.debug_barrier()
            tl.store(dW_dec_ptr + feature * d_out + column, grad, mask=inside)
        b = tl.load(db_enc_ptr + feature) + tl.load(left_b_ptr + at)
        tl.debug_barrier()
        tl.store(db_enc_ptr + feature, b)
        if HAS_STATS:
            # the row just written is read again, maybe by other threads of the program
            tl.debug_barrier()
            across, squared, radial = row_stats(dW_dec_ptr + feature * d_out, W_dec_ptr + feature * d_out, d_out, BLOCK_D)
            store_decoder_stats(stat_ptr, feature, across, squared, radial, n_tiles, d_sae)
