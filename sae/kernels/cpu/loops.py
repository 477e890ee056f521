"""The cpu backend's loops over active features: decoding, sorting by feature, the fused backward.

Each outer loop has the signature `(lo, hi, ...)` of `sae.kernels.cpu.runtime.run`, writes only to its own range, and
returns partial sums. Weights are feature-major `[d_sae, d]`.

numba's disk cache only tracks changes of a loop's own source file, so loops never call loops of another file.
"""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu.runtime import jit


@jit
@no_type_check
def dot(a, b):
    """Σ a·b."""
    total = np.float32(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


# -- decoding ---------------------------------------------------------------------------------------------------------


@jit
@no_type_check
def add_four(out, va, vb, vc, vd, a, b, c, d):
    """out += va · a + … + vd · d: four rows per pass over out."""
    for j in range(out.size):
        out[j] += va * a[j] + vb * b[j] + vc * c[j] + vd * d[j]


@jit
@no_type_check
def add_one(out, va, a):
    """out += va · a."""
    for j in range(out.size):
        out[j] += va * a[j]


@jit
@no_type_check
def add_scaled(out, w, feature, value, lo, hi):
    """out += Σ value · w[feature] over entries lo:hi."""
    p = lo
    while p + 4 <= hi:
        add_four(out, value[p], value[p + 1], value[p + 2], value[p + 3],
                 w[feature[p]], w[feature[p + 1]], w[feature[p + 2]], w[feature[p + 3]])
        p += 4
    while p < hi:
        add_one(out, value[p], w[feature[p]])
        p += 1


@jit
@no_type_check
def decode_rows(lo, hi, indptr, feature, value, w, bias, ends, out):
    """out[level, r] = bias + Σ over features below ends[level], in one pass over each row's ascending features."""
    for r in range(lo, hi):
        p = indptr[r]
        if ends.size == 1 and ends[0] >= w.shape[0]:
            out[0, r, :] = bias
            add_scaled(out[0, r], w, feature, value, p, indptr[r + 1])
            continue
        for level in range(ends.size):
            here = out[level, r]
            here[:] = bias if level == 0 else out[level - 1, r]
            q = p
            while q < indptr[r + 1] and feature[q] < ends[level] and value[q] != 0:
                q += 1
            add_scaled(here, w, feature, value, p, q)
            p = q


# -- the plan by feature, and the backward over it --------------------------------------------------------------------


@jit
@no_type_check
def plan_by_feature(indptr, feature, value, d_sae, starts, order, rows):
    """Stable counting sort of the active entries by feature: feature f owns order[starts[f]:starts[f + 1]]."""
    for p in range(feature.size):
        if value[p] != 0:
            starts[feature[p] + 1] += 1
    for f in range(d_sae):
        starts[f + 1] += starts[f]
    cursor = starts[:d_sae].copy()
    for r in range(indptr.size - 1):
        for p in range(indptr[r], indptr[r + 1]):
            if value[p] != 0:
                q = cursor[feature[p]]
                order[q] = p
                rows[q] = r
                cursor[feature[p]] = q + 1


@jit
@no_type_check
def grad_row_stats(ge, gd, wd, f, enc2, dec2, radial):
    """Squared norms of feature f's gradient rows; the decoder's also without its part along the decoder row."""
    enc2[f] = dot(ge, ge)
    along = dot(gd, wd)
    rest2 = np.float32(0)
    for j in range(gd.size):
        rest = gd[j] - along * wd[j]
        rest2 += rest * rest
    radial[f] = along
    dec2[f, 0] = rest2
    dec2[f, 1] = dot(gd, gd)


@jit
@no_type_check
def visit_four(a, b, c, d, va, vb, vc, vd, w, gd, along):
    """gd += va · a + … + vd · d, and along = (⟨a, w⟩, …, ⟨d, w⟩), in one pass over the rows."""
    sa, sb, sc, sd = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(w.size):
        wj = w[j]
        sa += a[j] * wj
        sb += b[j] * wj
        sc += c[j] * wj
        sd += d[j] * wj
        gd[j] += va * a[j] + vb * b[j] + vc * c[j] + vd * d[j]
    along[0], along[1], along[2], along[3] = sa, sb, sc, sd


@jit
@no_type_check
def visit_one(a, va, w, gd):
    """gd += va · a; returns ⟨a, w⟩."""
    sa = np.float32(0)
    for j in range(w.size):
        sa += a[j] * w[j]
        gd[j] += va * a[j]
    return sa


@jit
@no_type_check
def visit_entries(q, end, order, rows, value, g, wd, gd, g_entry):
    """dW_dec of one feature, and ⟨g_n, W_dec⟩ for each of its entries."""
    along = np.empty(4, np.float32)
    while q + 4 <= end:
        visit_four(g[rows[q]], g[rows[q + 1]], g[rows[q + 2]], g[rows[q + 3]], value[order[q]], value[order[q + 1]],
                   value[order[q + 2]], value[order[q + 3]], wd, gd, along)
        for z in range(4):
            g_entry[order[q + z]] = along[z]
        q += 4
    while q < end:
        g_entry[order[q]] = visit_one(g[rows[q]], value[order[q]], wd, gd)
        q += 1


@jit
@no_type_check
def backward_features(lo, hi, starts, order, rows, value, g_value, has_g_value, g, levels, x, w_enc, w_dec,
                      g_enc, g_dec, g_bias, g_entry, enc2, dec2, radial):
    """All gradients of features lo:hi, in one pass over their entries.

    For an entry (row n, value v) of feature f: ∂value = ⟨g_n, W_dec,f⟩ + the gradient of losses on the value, then
    dW_dec,f += v · g_n, dW_enc,f += ∂value · x_n, db_f += ∂value. `g` has one gradient per prefix, already summed over
    the prefixes that contain the feature (levels[f]; −1 for none). Returns this range's part of b_pre's gradient,
    −Σ db_f · W_enc,f.
    """
    g_pre = np.zeros(w_enc.shape[1], np.float32)
    for f in range(lo, hi):
        ge, gd, wd = g_enc[f], g_dec[f], w_dec[f]
        ge[:] = np.float32(0)
        gd[:] = np.float32(0)
        begin, end = starts[f], starts[f + 1]
        if levels[f] >= 0:
            visit_entries(begin, end, order, rows, value, g[levels[f]], wd, gd, g_entry)
        bias = np.float32(0)
        for q in range(begin, end):
            p = order[q]
            if has_g_value:
                g_entry[p] += g_value[p]
            bias += g_entry[p]
        q = begin
        while q + 4 <= end:
            add_four(ge, g_entry[order[q]], g_entry[order[q + 1]], g_entry[order[q + 2]], g_entry[order[q + 3]],
                     x[rows[q]], x[rows[q + 1]], x[rows[q + 2]], x[rows[q + 3]])
            q += 4
        while q < end:
            add_one(ge, g_entry[order[q]], x[rows[q]])
            q += 1
        g_bias[f] = bias
        grad_row_stats(ge, gd, wd, f, enc2, dec2, radial)
        if bias != 0:
            add_one(g_pre, -bias, w_enc[f])
    return g_pre


@jit
@no_type_check
def add_rows(lo, hi, ids, more_enc, more_dec, g_enc, g_dec, w_dec, enc2, dec2, radial):
    """Add compact gradient rows to features ids[lo:hi] and update their statistics."""
    for q in range(lo, hi):
        f = ids[q]
        g_enc[f] += more_enc[q]
        g_dec[f] += more_dec[q]
        grad_row_stats(g_enc[f], g_dec[f], w_dec[f], f, enc2, dec2, radial)


@jit
@no_type_check
def sum_rows(lo, hi, g):
    """Σ of rows lo:hi."""
    out = np.zeros(g.shape[1], np.float32)
    for r in range(lo, hi):
        for j in range(g.shape[1]):
            out[j] += g[r, j]
    return out


@jit
@no_type_check
def densify(lo, hi, indptr, feature, value, first, out):
    """Rows lo:hi of the dense activations, counted from the code's row `first`."""
    out[lo:hi] = np.float32(0)
    for r in range(lo, hi):
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                out[r, feature[p]] = value[p]


@jit
@no_type_check
def pick_entries(lo, hi, indptr, feature, value, first, dense, g_value, has_g_value, g_entry):
    """Gather the gradient of each active entry from dense rows, and zero the inactive entries of those rows."""
    for r in range(lo, hi):
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                g_entry[p] = dense[r, feature[p]] + (g_value[p] if has_g_value else np.float32(0))
        dense[r, :] = np.float32(0)
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                dense[r, feature[p]] = g_entry[p]
