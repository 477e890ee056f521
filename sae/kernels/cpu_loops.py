"""The loops of the cpu backend: selection, decoding, the fused backward.

Each outer loop has the signature `(lo, hi, ...)` of `sae.kernels.cpu_run.run`, writes only what belongs to its range,
and returns partial sums. Weights are feature-major `[d_sae, d]`. Scores are bf16 bits (uint16) or fp32, without bias.
"""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu_run import jit

SIGMAS = np.float32(6.0)
"""How many standard deviations of the measured bf16 error a score outside the candidates is allowed to be wrong by."""
BF16 = np.float32(1.5 * 2.0**-8)
"""|bf16 score − exact score| ≤ BF16 · ‖x‖ · ‖w‖: half an ulp for each factor (Cauchy–Schwarz) and for the result."""


# -- one row ----------------------------------------------------------------------------------------------------------


@jit
@no_type_check
def dot(a, b):
    """Σ a·b."""
    total = np.float32(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@jit
@no_type_check
def four_dots(x, a, b, c, d, out):
    """⟨x, a⟩ … ⟨x, d⟩: four rows are fetched at a time, and x once."""
    sa, sb, sc, sd = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(x.size):
        sa += x[j] * a[j]
        sb += x[j] * b[j]
        sc += x[j] * c[j]
        sd += x[j] * d[j]
    out[0], out[1], out[2], out[3] = sa, sb, sc, sd


@jit
@no_type_check
def load_row(r, half, scores16, scores32, out):
    """Row r of the scores as fp32."""
    if half:
        bits = out.view(np.uint32)
        row = scores16[r]
        for j in range(out.size):
            bits[j] = np.uint32(row[j]) << np.uint32(16)
    else:
        row32 = scores32[r]
        for j in range(out.size):
            out[j] = row32[j]


# a function for each strip: the loops do not vectorise otherwise


@jit
@no_type_check
def strip_max(score, bias, peak):
    """score += bias; peak = max(peak, score). Returns 0, or NaN if a score is not finite."""
    poison = np.float32(0)
    for j in range(score.size):
        v = score[j] + bias[j]
        score[j] = v
        poison += v * np.float32(0)
        peak[j] = v if v > peak[j] else peak[j]
    return poison


@jit
@no_type_check
def strip_max_abs(score, bias, peak):
    """As `strip_max`, of the absolute score."""
    poison = np.float32(0)
    for j in range(score.size):
        v = score[j] + bias[j]
        score[j] = v
        poison += v * np.float32(0)
        a = abs(v)
        peak[j] = a if a > peak[j] else peak[j]
    return poison


@jit
@no_type_check
def group_max(score, bias, peak, absolute):
    """Add the bias; peak[j] = the largest of scores j, j + m, j + 2m, … (m groups). True if all are finite.

    Strided groups make the maximum an element-wise one, which vectorises without shuffles.
    """
    m, n = peak.size, score.size
    poison = np.float32(0)
    peak[:] = np.float32(-np.inf)
    for a in range(0, n, m):
        b = min(a + m, n)
        if absolute:
            poison += strip_max_abs(score[a:b], bias[a:b], peak[: b - a])
        else:
            poison += strip_max(score[a:b], bias[a:b], peak[: b - a])
    return poison == 0


@jit
@no_type_check
def strip_excess(score, bias, low, slope, w_norm, peak, absolute):
    """As `strip_max`, of the excess over each feature's bound: score − low + slope · w_norm."""
    poison = np.float32(0)
    for j in range(score.size):
        v = score[j] + bias[j]
        score[j] = v
        poison += v * np.float32(0)
        a = (abs(v) if absolute else v) - low[j] + slope * w_norm[j]
        peak[j] = a if a > peak[j] else peak[j]
    return poison


@jit
@no_type_check
def group_excess(score, bias, low, slope, w_norm, peak, absolute):
    """As `group_max`, of the excess over each feature's bound."""
    m, n = peak.size, score.size
    poison = np.float32(0)
    peak[:] = np.float32(-np.inf)
    for a in range(0, n, m):
        b = min(a + m, n)
        poison += strip_excess(score[a:b], bias[a:b], low[a:b], slope, w_norm[a:b], peak[: b - a], absolute)
    return poison == 0


@jit
@no_type_check
def count_from(values, bound):
    """How many reach the bound."""
    n = np.int32(0)
    for j in range(values.size):
        n += np.int32(values[j] >= bound)
    return n


@jit
@no_type_check
def bound_for(peak, n_wanted, floor):
    """A bound ≥ floor that at least `n_wanted` of peak reach and not many more; the floor if fewer do."""
    lo, hi = peak[0], peak[0]
    for j in range(peak.size):
        lo = peak[j] if peak[j] < lo else lo
        hi = peak[j] if peak[j] > hi else hi
    lo = max(lo, floor)
    if count_from(peak, lo) <= n_wanted:
        return lo
    for _ in range(48):
        mid = lo + (hi - lo) * np.float32(0.5)
        if not (lo < mid < hi):
            break
        n = count_from(peak, mid)
        if n < n_wanted:
            hi = mid
            continue
        lo = mid
        if n <= n_wanted + n_wanted // 8:
            break
    return lo


@jit
@no_type_check
def gather_between(score, peak, lo, hi, absolute, index, n):
    """Append to index[n:] every feature whose (absolute) score lies in [lo, hi); returns the new n."""
    m = peak.size
    for j in range(m):
        if peak[j] >= lo:
            for i in range(j, score.size, m):
                a = abs(score[i]) if absolute else score[i]
                if lo <= a < hi:
                    index[n] = i
                    n += 1
    return n


@jit
@no_type_check
def rank_keys(value, n, absolute, key):
    """Integers that order as the (absolute) values do where these are positive; 0 for the others."""
    bits = value.view(np.int32)
    for q in range(n):
        b = bits[q]
        key[q] = (b & np.int32(0x7FFFFFFF)) if absolute else max(b, np.int32(0))


@jit
@no_type_check
def kth_key(key, n, k):
    """The k-th largest of key[:n]; 0 if fewer than k are positive."""
    kept = key[:n]
    t = np.int32(0)
    for bit in range(30, -1, -1):
        tried = t | np.int32(1 << bit)
        if count_from(kept, tried) >= k:
            t = tried
    return t


@jit
@no_type_check
def sort_row(feature, value, n):
    """Sort the first n pairs by feature, in place."""
    if n > 64:
        packed = np.empty(n, np.int64)
        bits = value.view(np.int32)
        for q in range(n):
            packed[q] = (np.int64(feature[q]) << 32) | np.int64(np.uint32(bits[q]))
        packed.sort()
        for q in range(n):
            feature[q] = np.int32(packed[q] >> 32)
            bits[q] = np.int32(packed[q] & 0xFFFFFFFF)
        return
    for q in range(1, n):
        f, v = feature[q], value[q]
        p = q
        while p > 0 and feature[p - 1] > f:
            feature[p], value[p] = feature[p - 1], value[p - 1]
            p -= 1
        feature[p], value[p] = f, v


@jit
@no_type_check
def keep_best(index, value, key, n, k, feature_out, value_out):
    """Write the k best candidates, ascending by feature, then padding. Of equal values the lowest features win."""
    t = max(kth_key(key, n, k), np.int32(1))
    n_above, n_tied = 0, 0
    for q in range(n):
        n_above += key[q] > t
        n_tied += key[q] == t
    last = np.int32(0x7FFFFFFF)
    room = k - n_above
    if n_tied > room:
        last = np.int32(-1)
        for _ in range(room):
            lowest = np.int32(0x7FFFFFFF)
            for q in range(n):
                if key[q] == t and last < index[q] < lowest:
                    lowest = index[q]
            last = lowest
    n_out = 0
    for q in range(n):
        if key[q] > t or (key[q] == t and index[q] <= last):
            feature_out[n_out] = index[q]
            value_out[n_out] = value[q]
            n_out += 1
    sort_row(feature_out, value_out, n_out)
    feature_out[n_out:] = 0
    value_out[n_out:] = 0


@jit
@no_type_check
def rescore(x, w, bias, score, index, lo, hi, value):
    """Exact values of candidates lo:hi; returns the sum of squared errors of their scores."""
    q = lo
    while q + 4 <= hi:
        four_dots(x, w[index[q]], w[index[q + 1]], w[index[q + 2]], w[index[q + 3]], value[q:q + 4])
        q += 4
    while q < hi:
        value[q] = dot(x, w[index[q]])
        q += 1
    err2 = np.float32(0)
    for q in range(lo, hi):
        value[q] += bias[index[q]]
        err2 += (value[q] - score[index[q]]) ** 2
    return err2


# -- selection --------------------------------------------------------------------------------------------------------


@jit
@no_type_check
def select_topk(lo, hi, half, scores16, scores32, x, w, bias, k, n_candidates, n_groups, absolute, first,
                feature, value, bad):
    """The k best of rows lo:hi of the scores, which are rows `first + lo : first + hi` of x and of the output.

    At least `n_candidates` scores reach the `n_candidates`-th largest group maximum, so the k largest do: only the
    groups that reach it are looked into. With bf16 scores the candidates are scored again in fp32, and the bound is
    lowered until it lies so far below the k-th exact value that no score outside can have been that wrong.
    """
    d_sae = bias.size
    score = np.empty(d_sae, np.float32)
    peak = np.empty(n_groups, np.float32)
    index = np.empty(d_sae, np.int32)
    exact = np.empty(d_sae, np.float32)
    key = np.empty(d_sae, np.int32)
    inf = np.float32(np.inf)
    for r in range(lo, hi):
        row = first + r
        load_row(r, half, scores16, scores32, score)
        if not group_max(score, bias, peak, absolute):
            bad[row] = 1
            continue
        bound = bound_for(peak, n_candidates, -inf if half else np.float32(0))
        n = gather_between(score, peak, bound, inf, absolute, index, 0)
        if not half:
            for q in range(n):
                exact[q] = score[index[q]]
            rank_keys(exact, n, absolute, key)
        else:
            err2 = rescore(x[row], w, bias, score, index, 0, n, exact)
            rank_keys(exact, n, absolute, key)
            while n < d_sae:
                kth = key[n:n + 1]  # scratch: one integer, read back as the float it stands for
                kth[0] = kth_key(key, n, k)
                safe = kth.view(np.float32)[0] - SIGMAS * np.float32(np.sqrt(err2 / max(n, 1)))
                if bound <= safe:
                    break
                n_more = gather_between(score, peak, safe, bound, absolute, index, n)
                err2 += rescore(x[row], w, bias, score, index, n, n_more, exact)
                n, bound = n_more, safe
                rank_keys(exact, n, absolute, key)
        keep_best(index, exact, key, n, k, feature[row], value[row])


@jit
@no_type_check
def peak_histogram(lo, hi, half, scores16, scores32, bias, n_groups, absolute, first, bad):
    """How many group maxima have each upper half of a positive fp32 number."""
    histogram = np.zeros(1 << 15, np.int32)
    score = np.empty(bias.size, np.float32)
    peak = np.empty(n_groups, np.float32)
    bits = peak.view(np.int32)
    for r in range(lo, hi):
        load_row(r, half, scores16, scores32, score)
        if not group_max(score, bias, peak, absolute):
            bad[first + r] = 1
            continue
        for j in range(n_groups):
            if bits[j] > 0:
                histogram[bits[j] >> 16] += 1
    return histogram


@jit
@no_type_check
def grown(array, n):
    """The array with room for n entries."""
    if n <= array.size:
        return array
    larger = np.empty(max(n, 2 * array.size), array.dtype)
    larger[: array.size] = array
    return larger


@jit
@no_type_check
def select_above(lo, hi, half, scores16, scores32, x, x_norm, w, w_norm, bias, low, threshold, trust, n_groups,
                 absolute, first, bad):
    """Active entries of rows lo:hi, CSR: features, values, entries per row, and the worst share of BF16 seen.

    Candidates are scores above low − trust · BF16 · ‖x‖ · ‖w‖ (fp32 scores: above low); kept are those whose exact
    value exceeds the threshold.
    """
    d_sae = bias.size
    score = np.empty(d_sae, np.float32)
    peak = np.empty(n_groups, np.float32)
    index = np.empty(d_sae, np.int32)
    feature = np.empty(64 * (hi - lo) + 64, np.int32)
    value = np.empty(feature.size, np.float32)
    counts = np.zeros(hi - lo, np.int64)
    n_kept = 0
    worst = np.float32(0)
    for r in range(lo, hi):
        row = first + r
        load_row(r, half, scores16, scores32, score)
        unit = BF16 * x_norm[row] if half else np.float32(0)
        slope = trust * unit
        if not group_excess(score, bias, low, slope, w_norm, peak, absolute):
            bad[row] = 1
            continue
        n_hit = 0
        for j in range(n_groups):
            n_hit += peak[j] > 0
        n = 0
        if n_hit * 4 > n_groups:
            for f in range(d_sae):
                a = abs(score[f]) if absolute else score[f]
                if a - low[f] + slope * w_norm[f] > 0:
                    index[n] = f
                    n += 1
        else:
            for j in range(n_groups):
                if peak[j] > 0:
                    for f in range(j, d_sae, n_groups):
                        a = abs(score[f]) if absolute else score[f]
                        if a - low[f] + slope * w_norm[f] > 0:
                            index[n] = f
                            n += 1
        feature = grown(feature, n_kept + n)
        value = grown(value, n_kept + n)
        before = n_kept
        for q in range(n):
            f = index[q]
            v = score[f]
            if half:
                v = dot(x[row], w[f]) + bias[f]
                worst = max(worst, abs(v - score[f]) / (unit * w_norm[f] + np.float32(1e-30)))
            a = abs(v) if absolute else v
            if a > threshold[f]:
                feature[n_kept] = f
                value[n_kept] = v
                n_kept += 1
        counts[r - lo] = n_kept - before
        if n_hit * 4 <= n_groups:
            sort_row(feature[before:n_kept], value[before:n_kept], n_kept - before)
    return feature[:n_kept], value[:n_kept], counts, worst


# -- decoding ---------------------------------------------------------------------------------------------------------


@jit
@no_type_check
def add_four(out, va, vb, vc, vd, a, b, c, d):
    """out += va · a + … + vd · d: four rows are fetched at a time, and out once."""
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
    """out[level, r] = bias + Σ of the features below ends[level]: one pass over each row's ascending features."""
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
    """Squared norms of feature f's gradient rows, that of the decoder also without its part along the decoder row."""
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
    """gd += va · a + … + vd · d, and along = (⟨a, w⟩, …, ⟨d, w⟩), in one reading of the rows."""
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
    """dW_dec of one feature, and ⟨g_n, W_dec⟩ of each of its entries."""
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
    """All gradients of features lo:hi, from one visit to each of their entries.

    For an entry (row n, value v) of feature f: ∂value = ⟨g_n, W_dec,f⟩ + the gradient value has from elsewhere, then
    dW_dec,f += v · g_n, dW_enc,f += ∂value · x_n, db_f += ∂value. `g` holds one gradient per prefix, already summed
    over the prefixes that contain the feature (levels[f]; −1 for none). Returns the part of b_pre's gradient,
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
    """Add compact gradient rows to features ids[lo:hi] and renew their statistics."""
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
    """Rows lo:hi of the code with its zeros written out, from its row `first` on."""
    out[lo:hi] = np.float32(0)
    for r in range(lo, hi):
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                out[r, feature[p]] = value[p]


@jit
@no_type_check
def pick_entries(lo, hi, indptr, feature, value, first, dense, g_value, has_g_value, g_entry):
    """Gradient of each active entry, from dense rows; what is not active is set to zero in them, what is stays."""
    for r in range(lo, hi):
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                g_entry[p] = dense[r, feature[p]] + (g_value[p] if has_g_value else np.float32(0))
        dense[r, :] = np.float32(0)
        for p in range(indptr[first + r], indptr[first + r + 1]):
            if value[p] != 0:
                dense[r, feature[p]] = g_entry[p]
