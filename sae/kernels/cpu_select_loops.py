"""The selecting loops of the cpu backend: from the scores of a row to its active features.

Each outer loop has the signature `(lo, hi, ...)` of `sae.kernels.cpu_run.run`, writes only what belongs to its range,
and returns partial sums. Weights are feature-major `[d_sae, d]`. Scores are bf16 bits (uint16) or fp32, without bias.

Machine code kept on disk is known by its own source file alone: a file of loops therefore calls none of another's.
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
