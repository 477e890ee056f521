"""Triton kernels that sum weight gradients and write them to memory.

See `sae.kernels.gpu.code_kernels` for the rules of all kernels and `sae.kernels.gpu.backward_kernels` for how work is
partitioned by feature, and hot features into parts. Columns are tiled, and all features of a tile are processed before the
next tile, so that the tile's slice of the gathered rows stays in cache. A tile is held by one warp, so sums need no
synchronisation. The decoder's gradients come first, with each tile's part of the value gradients, which the encoder's
need.

Each pass also stores statistics, so that the optimiser need not read the gradients again. `tile_stat` has, per tile and
feature, the squared norm of the gradient in this tile and, for the decoder, its dot product with the decoder row w in
operand precision, and ‖w‖² in this tile: `[n_tiles, d_sae]` for the encoder, then three of these for the decoder.
"""

from typing import no_type_check

import triton
import triton.language as tl

from sae.kernels.gpu.backward_kernels import SIZES, find_piece, segment_of, sum_parts


@triton.jit
@no_type_check
def load_rows(rows_ptr, row, here, column, d):
    """Columns of several rows in fp32, zero beyond d and for entries that are not `here`."""
    mask = here[:, None] & (column < d)[None, :]
    return tl.load(rows_ptr + row[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def store_tile_stats(stat_ptr, feature, tile, n_tiles, d_sae, grad, w, HAS_W: tl.constexpr):
    """Store the statistics of one tile of a gradient."""
    stat_ptr += tile.to(tl.int64) * d_sae + feature
    tl.store(stat_ptr, tl.sum(grad * grad, 0))
    if HAS_W:
        stride = n_tiles.to(tl.int64) * d_sae
        tl.store(stat_ptr + stride, tl.sum(grad * w, 0))
        tl.store(stat_ptr + 2 * stride, tl.sum(w * w, 0))


@triton.jit(do_not_specialize=[*SIZES, "n_tiles"])
@no_type_check
def row_sums_kernel(
    feature_ptr, first_ptr, order_ptr, row_ptr, weight_ptr, extra_ptr, end_ptr, rows_ptr, W_ptr, out_ptr, dot_ptr,
    sum_ptr, stat_ptr, part_ptr, part_sum_ptr, n_windows, n_entries, k, n_ends, rows_stride, n_tiles, d_sae, d,
    CHUNK: tl.constexpr, BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, FIXED_K: tl.constexpr,
    HAS_DOT: tl.constexpr, HAS_EXTRA: tl.constexpr, HAS_SUM: tl.constexpr,
):
    """Σ weight · rows[row] over the entries of each feature, one tile of columns. Grid (items, tiles of d).

    HAS_DOT: also each entry's `rows[row] · W[feature]` over this tile (and `extra` in the first), `dot [n_tiles,
    n_entries]` by position. HAS_SUM: also Σ weight.
    """
    item, tile = tl.program_id(0), tl.program_id(1)
    feature, start, end = find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        rows_ptr += segment_of(end_ptr, n_ends, feature) * rows_stride
        dot_ptr += tile.to(tl.int64) * n_entries
        column = tile * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], tl.float32)
        w = total
        if HAS_DOT:
            w = tl.load(W_ptr + feature * d + column, mask=column < d, other=0.0).to(tl.float32)
        weights = tl.zeros([BLOCK_ENTRIES], tl.float32)
        for first in range(start, end, BLOCK_ENTRIES):
            entry = first + tl.arange(0, BLOCK_ENTRIES)
            here = entry < end
            position = tl.load(order_ptr + entry, mask=here, other=0)
            if FIXED_K:
                row = (position.to(tl.int32) // k).to(tl.int64)
            else:
                row = tl.load(row_ptr + position, mask=here, other=0).to(tl.int64)
            rows = load_rows(rows_ptr, row, here, column, d)
            weight = tl.load(weight_ptr + position, mask=here, other=0.0)
            total += tl.sum(weight[:, None] * rows, axis=0)
            if HAS_DOT:
                dot = tl.sum(rows * w[None, :], axis=1)
                if HAS_EXTRA:
                    dot += tl.load(extra_ptr + position, mask=entry < tl.where(tile == 0, end, 0), other=0.0)
                tl.store(dot_ptr + position, dot, mask=here)
            weights += weight
        if item >= 2 * n_windows:
            tl.store(out_ptr + feature * d + column, total, mask=column < d)
            if HAS_SUM:
                tl.store(sum_ptr + feature, tl.sum(weights, 0), mask=tile == 0)
            store_tile_stats(stat_ptr, feature, tile, n_tiles, d_sae, total, w, HAS_DOT)
        else:
            part = item.to(tl.int64)
            tl.store(part_ptr + part * d + column, total, mask=column < d)
            if HAS_SUM:
                tl.store(part_sum_ptr + part, tl.sum(weights, 0), mask=tile == 0)


@triton.jit(do_not_specialize=[*SIZES, "tiles_in", "tiles_out"])
@no_type_check
def sum_parts_kernel(
    feature_ptr, first_ptr, part_enc_ptr, part_dec_ptr, part_b_ptr, W_dec_ptr, dW_enc_ptr, dW_dec_ptr, db_enc_ptr,
    stat_ptr, n_windows, n_entries, tiles_in, tiles_out, d_sae, d_in, d_out, CHUNK: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Gradients of the hot feature that starts in a window, if any. Grid (windows, tiles of the larger d)."""
    window, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    feature, _, _ = find_piece(feature_ptr, first_ptr, 2 * window + 1, n_windows, n_entries, d_sae, CHUNK)
    if feature < d_sae:
        last = (tl.load(first_ptr + feature + 1) - 1) // CHUNK
        if tile < tiles_in:
            column = tile * BLOCK_IN + tl.arange(0, BLOCK_IN)
            enc = sum_parts(part_enc_ptr, column, window, last, d_in, BLOCK_IN)
            tl.store(dW_enc_ptr + feature * d_in + column, enc, mask=column < d_in)
            store_tile_stats(stat_ptr, feature, tile, tiles_in, d_sae, enc, enc, False)
        if tile < tiles_out:
            column = tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            dec = sum_parts(part_dec_ptr, column, window, last, d_out, BLOCK_OUT)
            tl.store(dW_dec_ptr + feature * d_out + column, dec, mask=column < d_out)
            w = tl.load(W_dec_ptr + feature * d_out + column, mask=column < d_out, other=0.0).to(tl.float32)
            stat_ptr += tiles_in.to(tl.int64) * d_sae
            store_tile_stats(stat_ptr, feature, tile, tiles_out, d_sae, dec, w, True)
        b = tl.sum(sum_parts(part_b_ptr, tl.arange(0, 16), window, last, 1, 16), 0)
        tl.store(db_enc_ptr + feature, b, mask=tile == 0)


@triton.jit(do_not_specialize=["n_entries", "n_tiles"])
@no_type_check
def sum_dots_kernel(dot_ptr, value_ptr, dvalue_ptr, n_entries, n_tiles, BLOCK: tl.constexpr):
    """Gradient of each value, summed over tiles; padding gets none. Grid (blocks of entries,)."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < n_entries
    active = tl.load(value_ptr + entry, mask=inside, other=0.0) != 0
    total = tl.zeros([BLOCK], tl.float32)
    place = dot_ptr + entry
    for _ in range(n_tiles):
        total += tl.load(place, mask=active, other=0.0)
        place += n_entries
    tl.store(dvalue_ptr + entry, total, mask=inside)


@triton.jit
@no_type_check
def store_stats(stat_ptr, feature, inside, enc, dec, radial, w, d_sae):
    """Store statistics per feature, `stat [4, d_sae]`: ‖dW_dec − r w‖², ‖dW_enc‖², ‖dW_dec‖² and r = ⟨dW_dec, w⟩."""
    across = tl.maximum(dec - radial * radial * (2.0 - w), 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(stat_ptr + feature, across, mask=inside)
    tl.store(stat_ptr + d_sae + feature, enc, mask=inside)
    tl.store(stat_ptr + 2 * d_sae + feature, dec, mask=inside)
    tl.store(stat_ptr + 3 * d_sae + feature, radial, mask=inside)


@triton.jit(do_not_specialize=["tiles_in", "tiles_out"])
@no_type_check
def sum_stats_kernel(tile_stat_ptr, stat_ptr, tiles_in, tiles_out, d_sae, BLOCK: tl.constexpr):
    """Statistics per feature, summed over tiles. Grid (blocks of features,)."""
    feature = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < d_sae
    place = tile_stat_ptr + feature
    enc = tl.zeros([BLOCK], tl.float32)
    for _ in range(tiles_in):
        enc += tl.load(place, mask=inside, other=0.0)
        place += d_sae
    dec = tl.zeros([BLOCK], tl.float32)
    for _ in range(tiles_out):
        dec += tl.load(place, mask=inside, other=0.0)
        place += d_sae
    radial = tl.zeros([BLOCK], tl.float32)
    for _ in range(tiles_out):
        radial += tl.load(place, mask=inside, other=0.0)
        place += d_sae
    w = tl.zeros([BLOCK], tl.float32)
    for _ in range(tiles_out):
        w += tl.load(place, mask=inside, other=0.0)
        place += d_sae
    store_stats(stat_ptr, feature, inside, enc, dec, radial, w, d_sae)


@triton.jit
@no_type_check
def add_row(grad_ptr, left_ptr, w_ptr, d, BLOCK_D: tl.constexpr, HAS_W: tl.constexpr):
    """Add a row to a row of a gradient; returns its new squared norm, its dot product with a row w, and ‖w‖²."""
    square, radial = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    length = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        grad = tl.load(grad_ptr + column, mask=column < d, other=0.0)
        grad += tl.load(left_ptr + column, mask=column < d, other=0.0)
        # threads may hold the same elements, so all must read before any writes
        tl.debug_barrier()
        tl.store(grad_ptr + column, grad, mask=column < d)
        square += grad * grad
        if HAS_W:
            w = tl.load(w_ptr + column, mask=column < d, other=0.0).to(tl.float32)
            radial += grad * w
            length += w * w
    return tl.sum(square, 0), tl.sum(radial, 0), tl.sum(length, 0)


@triton.jit
@no_type_check
def add_left_kernel(
    id_ptr, left_enc_ptr, left_dec_ptr, left_b_ptr, dW_enc_ptr, dW_dec_ptr, db_enc_ptr, W_dec_ptr, stat_ptr, d_sae, d_in,
    d_out, BLOCK_D: tl.constexpr, HAS_STATS: tl.constexpr,
):
    """Add the gradients of some features, `left [n_ids, …]`, to those of all, and update statistics. Grid (n_ids,).

    Feature ids must be unique.
    """
    at = tl.program_id(0).to(tl.int64)
    feature = tl.load(id_ptr + at).to(tl.int64)
    enc, _, _ = add_row(dW_enc_ptr + feature * d_in, left_enc_ptr + at * d_in, W_dec_ptr, d_in, BLOCK_D, False)
    dec, radial, w = add_row(
        dW_dec_ptr + feature * d_out, left_dec_ptr + at * d_out, W_dec_ptr + feature * d_out, d_out, BLOCK_D, True
    )
    b = tl.load(db_enc_ptr + feature) + tl.load(left_b_ptr + at)
    tl.debug_barrier()
    tl.store(db_enc_ptr + feature, b)
    if HAS_STATS:
        store_stats(stat_ptr, feature, True, enc, dec, radial, w, d_sae)
