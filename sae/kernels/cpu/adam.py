"""The optimiser loops of the cpu backend: one pass over each matrix for clipping, Adam and the unit norm."""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu.runtime import jit


@jit
@no_type_check
def row_stats(lo, hi, grad, rows, unit, squares, radial):
    """Squared norm of each gradient row; if `unit`, without its part along the parameter's row."""
    for f in range(lo, hi):
        g, w = grad[f], rows[f]
        along = np.float32(0)
        if unit:
            for j in range(g.size):
                along += g[j] * w[j]
        total = np.float32(0)
        for j in range(g.size):
            rest = g[j] - along * w[j]
            total += rest * rest
        squares[f] = total
        radial[f] = along


# each row's loop is a function, because it does not vectorise inside the loop over rows with its branches


@jit
@no_type_check
def adam_row(w, g, m, v, along, scale, gain1, gain2, step_size, factor2, eps):
    """Adam on one row; returns its new squared norm. `factor2` is the square root of the second moment's correction."""
    square = np.float32(0)
    for j in range(w.size):
        gj = (g[j] - along * w[j]) * scale
        mj = m[j] + gain1 * (gj - m[j])
        vj = v[j] + gain2 * (gj * gj - v[j])
        m[j] = mj
        v[j] = vj
        wj = w[j] - step_size * (mj / (np.sqrt(vj) * factor2 + eps))
        w[j] = wj
        square += wj * wj
    return square


@jit
@no_type_check
def scale_row(w, factor):
    """Scale a row in place."""
    for j in range(w.size):
        w[j] *= factor


@jit
@no_type_check
def square_row(w):
    """Squared norm of a row."""
    square = np.float32(0)
    for j in range(w.size):
        square += w[j] * w[j]
    return square


@jit
@no_type_check
def half_row(w, out):
    """Convert a row to bf16 bits, rounding to nearest even."""
    one, carry, shift = np.uint32(1), np.uint32(0x7FFF), np.uint32(16)
    bits = w.view(np.uint32)
    for j in range(bits.size):
        out[j] = np.uint16((bits[j] + carry + ((bits[j] >> shift) & one)) >> shift)


@jit
@no_type_check
def adam_rows(lo, hi, rows, grad, squares, radial, exp_avg, exp_avg_sq, scale, gain1, gain2, step_size, factor2, eps,
              unit, sparse, with_half, half, norms):
    """Adam (Kingma & Ba 1412.6980, algorithm 1) on rows lo:hi, with clipping and, if `unit`, without the radial part.

    `gain1` and `gain2` are 1 − β. If `sparse`, rows with a zero gradient are left unchanged. Also writes row norms and,
    for the encoder, the bf16 copy for the next encode.
    """
    for f in range(lo, hi):
        w = rows[f]
        if sparse and squares[f] == 0:
            if with_half:
                norms[f] = np.sqrt(square_row(w))
                half_row(w, half[f])
            continue
        along = radial[f] if unit else np.float32(0)
        square = adam_row(w, grad[f], exp_avg[f], exp_avg_sq[f], along, scale, gain1, gain2, step_size, factor2, eps)
        norms[f] = np.sqrt(square)
        if unit:
            scale_row(w, np.float32(1) / max(norms[f], np.float32(1e-12)))
        if with_half:
            half_row(w, half[f])


@jit
@no_type_check
def to_half(lo, hi, w, w16, w_norm):
    """Convert rows to bf16 bits, and compute their norms."""
    for f in range(lo, hi):
        half_row(w[f], w16[f])
        w_norm[f] = np.sqrt(square_row(w[f]))
