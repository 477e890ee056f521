"""The Triton kernels of the GPU backend that compute with a chosen code, and the optimiser's.

Importing this file imports triton; only `sae.kernels.gpu_launch` and `sae.kernels.gpu_optim` do.

Rules every kernel here follows, because neither compiler nor interpreter enforces them: whatever is loaded is made
fp32 at once (the interpreter computes nonsense in bf16), a masked load says what the masked lanes hold, offsets that
grow with n_rows · d or d_sae · d are int64, no float is ever added atomically, and every sum has a fixed order, so that
results are the same bits from run to run.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def entry_dots_kernel(
    row_ptr, feature_ptr, rows_ptr, weights_ptr, bias_ptr, extra_ptr, dot_ptr, n_entries, d_sae, d,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXTRA: tl.constexpr,
):
    """`rows[row] · weights[feature]` of each entry, plus bias[feature] or extra[entry]. Grid (blocks of entries,).

    Entries whose feature is d_sae (padding, in the by-feature order) get 0.
    """
    entry = tl.program_id(0).to(tl.int64) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    inside = entry < n_entries
    feature = tl.load(feature_ptr + entry, mask=inside, other=d_sae).to(tl.int64)
    inside = inside & (feature < d_sae)
    row = tl.load(row_ptr + entry, mask=inside, other=0).to(tl.int64)
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
    tl.store(dot_ptr + entry, dot, mask=entry < n_entries)


@triton.jit
@no_type_check
def decode_kernel(
    feature_ptr, value_ptr, bound_ptr, weights_ptr, bias_ptr, out_ptr, d, prefix_stride, n_prefixes,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr,
):
    """`Σ value · weights[feature]` of each row, stored at the end of each prefix. Grid (n_rows, tiles of d).

    `bound [n_rows, n_prefixes + 1]`: the entries of prefix p end at bound[row, p + 1]. `prefix_stride` is n_rows · d.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < d
    total = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0)
    place = row * d + column
    start = tl.load(bound_ptr + row * (n_prefixes + 1))
    for prefix in range(n_prefixes):
        end = tl.load(bound_ptr + row * (n_prefixes + 1) + prefix + 1)
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
def weight_grads_kernel(
    item_feature_ptr, item_first_ptr, part_first_ptr, entry_first_ptr,
    row_ptr, dy_row_ptr, value_ptr, extra_ptr, dvalue_ptr, x_ptr, dy_ptr, W_dec_ptr,
    dW_enc_ptr, dW_dec_ptr, db_enc_ptr, part_enc_ptr, part_dec_ptr, part_b_ptr,
    d_sae, d_in, d_out, CHUNK: tl.constexpr, BLOCK_ENTRIES: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr, FUSED: tl.constexpr,
):
    """All weight gradients of one feature, or of one chunk of a hot feature's entries. Grid (items, tiles of d).

    dvalue = ⟨dy, W_dec[f]⟩ + extra;  dW_dec[f] = Σ value · dy;  dW_enc[f] = Σ dvalue · x;  db_enc[f] = Σ dvalue.
    FUSED: one tile spans d_in and d_out, and dvalue is computed here and stored; otherwise `extra` holds all of it.
    (Two buffers: threads that hold the same entry must not read what another has already written.)
    Entries (row, dy_row, value, extra, dvalue) lie sorted by feature. An item with all entries of its feature writes
    the gradients, zeros included; a chunk writes a part, which `sum_parts_kernel` adds up in order.
    """
    item = tl.program_id(0)
    tile = tl.program_id(1)
    feature = tl.load(item_feature_ptr + item).to(tl.int64)
    if feature < d_sae:
        first_item = tl.load(item_first_ptr + feature)
        whole = tl.load(item_first_ptr + feature + 1) - first_item == 1
        start = tl.load(entry_first_ptr + feature) + (item - first_item) * CHUNK
        end = tl.minimum(start + CHUNK, tl.load(entry_first_ptr + feature + 1))
        column_in = tile * BLOCK_IN + tl.arange(0, BLOCK_IN)
        column_out = tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        in_inside, out_inside = column_in < d_in, column_out < d_out
        grad_enc = tl.zeros([BLOCK_IN], tl.float32)
        grad_dec = tl.zeros([BLOCK_OUT], tl.float32)
        grad_b = tl.zeros([BLOCK_ENTRIES], tl.float32)
        w = tl.zeros([BLOCK_OUT], tl.float32)
        if FUSED:
            w += tl.load(W_dec_ptr + feature * d_out + column_out, mask=out_inside, other=0.0).to(tl.float32)
        for first in range(start, end, BLOCK_ENTRIES):
            entry = first + tl.arange(0, BLOCK_ENTRIES)
            here = entry < end
            row = tl.load(row_ptr + entry, mask=here, other=0).to(tl.int64)
            dy_row = tl.load(dy_row_ptr + entry, mask=here, other=0).to(tl.int64)
            value = tl.load(value_ptr + entry, mask=here, other=0.0)
            dvalue = tl.load(extra_ptr + entry, mask=here, other=0.0)
            dy = tl.load(
                dy_ptr + dy_row[:, None] * d_out + column_out[None, :], mask=here[:, None] & out_inside[None, :],
                other=0.0,
            ).to(tl.float32)
            x = tl.load(
                x_ptr + row[:, None] * d_in + column_in[None, :], mask=here[:, None] & in_inside[None, :], other=0.0
            ).to(tl.float32)
            if FUSED:
                dvalue += tl.sum(dy * w[None, :], axis=1)
                tl.store(dvalue_ptr + entry, dvalue, mask=here)
            grad_dec += tl.sum(value[:, None] * dy, axis=0)
            grad_enc += tl.sum(dvalue[:, None] * x, axis=0)
            grad_b += dvalue
        total_b = tl.sum(grad_b, 0)
        if whole:
            tl.store(dW_enc_ptr + feature * d_in + column_in, grad_enc, mask=in_inside)
            tl.store(dW_dec_ptr + feature * d_out + column_out, grad_dec, mask=out_inside)
            tl.store(db_enc_ptr + feature, total_b, mask=tile == 0)
        else:
            part = tl.load(part_first_ptr + feature) + item - first_item
            tl.store(part_enc_ptr + part * d_in + column_in, grad_enc, mask=in_inside)
            tl.store(part_dec_ptr + part * d_out + column_out, grad_dec, mask=out_inside)
            tl.store(part_b_ptr + part, total_b, mask=tile == 0)


@triton.jit
@no_type_check
def sum_parts_kernel(hot_ptr, part_first_ptr, part_ptr, out_ptr, d_sae, d, BLOCK_D: tl.constexpr):
    """The parts of each hot feature, summed in order. Grid (places for hot features, tiles of d)."""
    feature = tl.load(hot_ptr + tl.program_id(0)).to(tl.int64)
    if feature < d_sae:
        column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = column < d
        first, end = tl.load(part_first_ptr + feature), tl.load(part_first_ptr + feature + 1)
        total = tl.zeros([BLOCK_D], tl.float32)
        for part in range(first, end):
            total += tl.load(part_ptr + part * d + column, mask=inside, other=0.0)
        tl.store(out_ptr + feature * d + column, total, mask=inside)


@triton.jit
@no_type_check
def grad_norm_kernel(
    grad_ptr, param_ptr, square_ptr, radial_ptr, n_elements, d, BLOCK_D: tl.constexpr, UNIT_ROWS: tl.constexpr
):
    """Squared norm of each row of the gradient, without its part along a unit row (stored for later). Grid (rows,)."""
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
def adam_kernel(
    grad_ptr, param_ptr, mean_ptr, var_ptr, square_ptr, radial_ptr, scale_ptr, n_elements, d, lr_over_bias, rest1,
    beta2, rest2, one_over_bias2, eps, BLOCK_D: tl.constexpr, UNIT_ROWS: tl.constexpr, SPARSE: tl.constexpr,
):
    """One Adam step of each row; unit rows lose the radial part of their gradient and are renormalised. Grid (rows,).

    rest1 = 1 − beta1, rest2 = 1 − beta2: taken in fp64, where the subtraction loses nothing. If SPARSE, rows whose
    gradient has the squared norm 0 stay as they are.
    """
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr)
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
        # threads may hold the same elements: all have read before one writes
        tl.debug_barrier()
        if UNIT_ROWS:
            grad -= radial * param
        grad *= scale
        mean += rest1 * (grad - mean)
        var = var * beta2 + rest2 * grad * grad
        param -= lr_over_bias * mean / (tl.sqrt(var * one_over_bias2) + eps)
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(var_ptr + at, var, mask=inside)
        tl.store(param_ptr + at, param, mask=inside)
        square += tl.where(inside, param * param, 0.0)
    if UNIT_ROWS:
        norm = tl.maximum(tl.sqrt(tl.sum(square, 0)), 1e-12)
        # the rows just written are read again, maybe by other threads of the program
        tl.debug_barrier()
        for start in range(0, d, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = (column < d) & (row * d + column < n_elements)
            param = tl.load(param_ptr + row * d + column, mask=inside, other=0.0)
            tl.debug_barrier()
            tl.store(param_ptr + row * d + column, param / norm, mask=inside)
