"""Triton kernels of the backward pass; see `sae.kernels.gpu.code_kernels` for the rules of all kernels.

Entries are sorted by feature, and one program sums those of one feature. A *hot* feature, with more than CHUNK entries, is
split at the boundaries of windows of CHUNK sorted entries, and its partial sums are added in order afterwards. At most one
hot feature continues into a window and at most one starts in it, so partial sums have fixed places (2 per window) and
nothing must be counted first.
"""

from typing import no_type_check

import triton
import triton.language as tl

SIZES = ["n_windows", "n_entries"]
"""Vary between steps for codes without a fixed k, so kernels are not specialised for multiples of 16."""


@triton.jit
@no_type_check
def find_piece(feature_ptr, first_ptr, item, n_windows, n_entries, d_sae, CHUNK: tl.constexpr):
    """The work of an item: feature (d_sae for none), and its range of entries.

    Items are two places per window (a hot feature that continues, one that starts), then all features, of which hot ones
    are skipped.
    """
    is_whole = item >= 2 * n_windows
    begins = item % 2 == 1
    opening = (item // 2).to(tl.int64) * CHUNK
    closing = tl.minimum(opening + CHUNK, n_entries)
    named = tl.load(feature_ptr + tl.where(begins, closing - 1, opening), mask=item < 2 * n_windows, other=0)
    feature = tl.where(is_whole, item - 2 * n_windows, named).to(tl.int64)
    named_one = feature < d_sae
    first = tl.load(first_ptr + feature, mask=named_one, other=0)
    last = tl.load(first_ptr + feature + 1, mask=named_one, other=0)
    hot = last - first > CHUNK
    mine = named_one & tl.where(is_whole, hot == 0, hot & ((first >= opening) == begins))
    start = tl.where(is_whole, first, tl.maximum(first, opening))
    end = tl.where(is_whole, last, tl.minimum(last, closing))
    return tl.where(mine, feature, d_sae), start, end


@triton.jit
@no_type_check
def segment_of(end_ptr, n_ends, feature):
    """Index of the segment between prefix ends that contains a feature."""
    segment = tl.zeros([], tl.int64)
    for i in range(n_ends):
        segment += (tl.load(end_ptr + i) <= feature).to(tl.int64)
    return segment


@triton.jit
@no_type_check
def sum_entries(
    feature, start, end, column_in, column_out, order_ptr, row_ptr, value_ptr, extra_ptr, dvalue_ptr, end_ptr, x_ptr,
    dy_ptr, W_dec_ptr, k, n_ends, dy_stride, d_in, d_out, BLOCK_ENTRIES: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr, FUSED: tl.constexpr, FIXED_K: tl.constexpr, HAS_EXTRA: tl.constexpr,
):
    """Gradients of one feature from its entries `start` to `end`: a tile of dW_enc, one of dW_dec, and db_enc.

    dvalue = ⟨dy, W_dec[f]⟩ + extra;  dW_dec[f] = Σ value · dy;  dW_enc[f] = Σ dvalue · x;  db_enc[f] = Σ dvalue.
    FUSED: the tiles span d_in and d_out, and dvalue is computed here and stored; otherwise it is read.
    Rows, values and their gradients are indexed by position, and `order` maps entries to positions; FIXED_K: k positions
    per row. Features of the i-th segment between prefix ends use dy at offset i · `dy_stride`.
    """
    in_inside, out_inside = column_in < d_in, column_out < d_out
    dy_ptr += segment_of(end_ptr, n_ends, feature) * dy_stride
    grad_enc = tl.zeros([BLOCK_IN], tl.float32)
    grad_dec = tl.zeros([BLOCK_OUT], tl.float32)
    grad_b = tl.zeros([BLOCK_ENTRIES], tl.float32)
    w = tl.zeros([BLOCK_OUT], tl.float32)
    if FUSED:
        w += tl.load(W_dec_ptr + feature * d_out + column_out, mask=out_inside, other=0.0).to(tl.float32)
    for first in range(start, end, BLOCK_ENTRIES):
        entry = first + tl.arange(0, BLOCK_ENTRIES)
        here = entry < end
        position = tl.load(order_ptr + entry, mask=here, other=0)
        if FIXED_K:
            row = (position.to(tl.int32) // k).to(tl.int64)
        else:
            row = tl.load(row_ptr + position, mask=here, other=0).to(tl.int64)
        dy = tl.load(
            dy_ptr + row[:, None] * d_out + column_out[None, :], mask=here[:, None] & out_inside[None, :], other=0.0
        ).to(tl.float32)
        x = tl.load(
            x_ptr + row[:, None] * d_in + column_in[None, :], mask=here[:, None] & in_inside[None, :], other=0.0
        ).to(tl.float32)
        value = tl.load(value_ptr + position, mask=here, other=0.0)
        if FUSED:
            dvalue = tl.sum(dy * w[None, :], axis=1)
            if HAS_EXTRA:
                dvalue += tl.load(extra_ptr + position, mask=here, other=0.0)
            tl.store(dvalue_ptr + position, dvalue, mask=here)
        else:
            dvalue = tl.load(dvalue_ptr + position, mask=here, other=0.0)
        grad_dec += tl.sum(value[:, None] * dy, axis=0)
        grad_enc += tl.sum(dvalue[:, None] * x, axis=0)
        grad_b += dvalue
    return grad_enc, grad_dec, tl.sum(grad_b, 0)


@triton.jit
@no_type_check
def sum_parts(part_ptr, column, window, last_window, d, BLOCK_D: tl.constexpr):
    """Add up, in order, the partial sums of the hot feature that starts in a window."""
    inside = column < d
    total = tl.zeros([BLOCK_D], tl.float32)
    total += tl.load(part_ptr + (2 * window + 1) * d + column, mask=inside, other=0.0)
    for later in range(window + 1, last_window + 1):
        total += tl.load(part_ptr + 2 * later * d + column, mask=inside, other=0.0)
    return total
