"""The optimiser loops of the cpu backend: one pass over each matrix for clipping, Adam and the unit norm."""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu_run import jit


@jit
@no_type_check
def row_stats(lo, hi, grad, rows, unit, squares, radial):
    """Squared norm of each gradient row, without its part along the parameter's row if that is of unit norm."""
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


@jit
@no_type_check
def adam_rows(lo, hi, rows, grad, radial, exp_avg, exp_avg_sq, scale, gain1, gain2, step_size, correction2, eps,
              unit, with_half, half, norms):
    """Adam (Kingma & Ba 1412.6980, algorithm 1) on rows lo:hi, after clipping and, if unit, without the radial part.

    `gain1` and `gain2` are 1 − β. Also the rows' norms and, for the encoder, their bf16 copy for the next encode.
    """
    one, carry, shift = np.uint32(1), np.uint32(0x7FFF), np.uint32(16)
    for f in range(lo, hi):
        w, g, m, v = rows[f], grad[f], exp_avg[f], exp_avg_sq[f]
        along = radial[f]
        square = np.float32(0)
        for j in range(w.size):
            gj = (g[j] - along * w[j]) * scale if unit else g[j] * scale
            mj = m[j] + gain1 * (gj - m[j])
            vj = v[j] + gain2 * (gj * gj - v[j])
            m[j] = mj
            v[j] = vj
            wj = w[j] - step_size * (mj / (np.sqrt(vj / correction2) + eps))
            w[j] = wj
            square += wj * wj
        norm = np.sqrt(square)
        if unit:
            factor = np.float32(1) / max(norm, np.float32(1e-12))
            for j in range(w.size):
                w[j] *= factor
        norms[f] = norm
        if with_half:
            bits, out = w.view(np.uint32), half[f]
            for j in range(w.size):
                out[j] = np.uint16((bits[j] + carry + ((bits[j] >> shift) & one)) >> shift)
