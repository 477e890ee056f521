"""The cpu backend's selection loops: from a row's scores to its active features.

Each outer loop has the signature `(lo, hi, ...)` of `sae.kernels.cpu.runtime.run`, writes only to its own range, and
returns partial sums. Weights are feature-major `[d_sae, d]`. Scores are bf16 bits (uint16) or fp32, without bias.

numba's disk cache only tracks changes of a loop's own source file, so loops never call loops of another file.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sae.kernels.cpu.runtime import jit

SIGMAS = np.float32(6.0)
"""Assumed maximum error of scores outside the candidates, in standard deviations of the measured bf16 error."""
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
    """⟨x, a⟩ … ⟨x, d⟩: four rows per pass over x."""
    sa, sb, sc, sd = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(x.size):
        sa += x[j] * a[j]
        sb += x[j] * b[j]
        sc += x[j] * c[j]
        sd += x[j] * d[j]
    out[0], out[1], out[2], out[3] = sa, sb, sc, sd


@intrinsic
def as_float(_, score):
    """A score as fp32, converted if it is given as bf16 bits."""

    def codegen(context, builder, signature, args):  # noqa: ARG001
        if signature.args[0] == types.float32:
            return args[0]
        bits = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(score), codegen


# Four strips per function call, or the loops do not vectorise: a running maximum over one strip compiles to masked stores,
# which are ten times slower on CPUs without AVX512.


@jit
@no_type_check
def strips_max(a, b, c, d, bias_a, bias_b, bias_c, bias_d, peak):
    """peak = max(peak, score + bias) over four strips. Returns 0, or NaN if a score is not finite."""
    poison, zero = np.float32(0), np.float32(0)
    for j in range(peak.size):
        va, vb = as_float(a[j]) + bias_a[j], as_float(b[j]) + bias_b[j]
        vc, vd = as_float(c[j]) + bias_c[j], as_float(d[j]) + bias_d[j]
        poison += (va * zero + vb * zero) + (vc * zero + vd * zero)
        top = va if va > peak[j] else peak[j]
        top = vb if vb > top else top
        top = vc if vc > top else top
        peak[j] = vd if vd > top else top
    return poison


@jit
@no_type_check
def strips_max_abs(a, b, c, d, bias_a, bias_b, bias_c, bias_d, peak):
    """`strips_max` of the absolute scores."""
    poison, zero = np.float32(0), np.float32(0)
    for j in range(peak.size):
        va, vb = abs(as_float(a[j]) + bias_a[j]), abs(as_float(b[j]) + bias_b[j])
        vc, vd = abs(as_float(c[j]) + bias_c[j]), abs(as_float(d[j]) + bias_d[j])
        poison += (va * zero + vb * zero) + (vc * zero + vd * zero)
        top = va if va > peak[j] else peak[j]
        top = vb if vb > top else top
        top = vc if vc > top else top
        peak[j] = vd if vd > top else top
    return poison


@jit
@no_type_check
def quad(score, i, m):
    """Four strips of m scores from strip i on, repeating the last full strip past the end."""
    last = score.size // m - 1
    j, k, n = min(i + 1, last) * m, min(i + 2, last) * m, min(i + 3, last) * m
    return score[i * m:i * m + m], score[j:j + m], score[k:k + m], score[n:n + m]


@jit
@no_type_check
def group_max(score, bias, peak, absolute):
    """peak[j] = the largest of scores (with bias) j, j + m, j + 2m, … (m groups). True if all are finite.

    Strided groups make it an elementwise maximum, which vectorises without shuffles.
    """
    m, poison = peak.size, np.float32(0)
    n_full = score.size // m
    peak[:] = np.float32(-np.inf)
    for i in range(0, n_full, 4):
        if absolute:
            poison += strips_max_abs(*quad(score, i, m), *quad(bias, i, m), peak)
        else:
            poison += strips_max(*quad(score, i, m), *quad(bias, i, m), peak)
    s, b = score[n_full * m:], bias[n_full * m:]
    if absolute:
        poison += strips_max_abs(s, s, s, s, b, b, b, b, peak[: s.size])
    else:
        poison += strips_max(s, s, s, s, b, b, b, b, peak[: s.size])
    return poison == 0


@jit
@no_type_check
def strip_excess(score, bias, low, slope, w_norm, excess, absolute):
    """Excess of each score over its feature's bound: score − low + slope · w_norm. Returns 0 or NaN like `strips_max`."""
    poison = np.float32(0)
    for j in range(score.size):
        v = as_float(score[j]) + bias[j]
        poison += v * np.float32(0)
        excess[j] = (abs(v) if absolute else v) - low[j] + slope * w_norm[j]
    return poison


@jit
@no_type_check
def count_from(values, bound):
    """Number of values ≥ bound."""
    n = np.int32(0)
    for j in range(values.size):
        n += np.int32(values[j] >= bound)
    return n


@jit
@no_type_check
def bound_for(peak, n_wanted, floor):
    """A bound ≥ floor that at least `n_wanted` peaks, and not many more, reach; the floor if fewer reach it."""
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
def gather_between(score, bias, peak, lo, hi, absolute, index, found, n):
    """Append all features with (absolute) score in [lo, hi) to index[n:], and their scores to found[n:].

    Returns the new n.
    """
    m = peak.size
    for j in range(m):
        if peak[j] >= lo:
            for i in range(j, score.size, m):
                v = as_float(score[i]) + bias[i]
                a = abs(v) if absolute else v
                if lo <= a < hi:
                    index[n] = i
                    found[n] = v
                    n += 1
    return n


@jit
@no_type_check
def rank_keys(value, n, absolute, key):
    """Integer keys in the order of the (absolute) values; 0 for values that are not positive."""
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
    """Write the k largest candidates, ascending by feature, then padding. Ties go to the lowest feature."""
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
def rescore(x, w, bias, found, index, lo, hi, value):
    """Exact values of candidates lo:hi; returns the summed squared error of their scores."""
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
        err2 += (value[q] - found[q]) ** 2
    return err2


# -- selection --------------------------------------------------------------------------------------------------------


@jit
@no_type_check
def select_topk(lo, hi, half, scores16, scores32, x, w, bias, k, n_candidates, n_groups, absolute, first,
                feature, value, bad):
    """The k largest of rows lo:hi of the scores, which are rows `first + lo : first + hi` of x and of the output.

    At least `n_candidates` scores reach the `n_candidates`-th largest group maximum, so the k largest do too, and only
    groups that reach it are scanned. With bf16 scores, candidates are re-scored in fp32, and the bound is lowered until it
    is so far below the k-th exact value that no other score can be that wrong.
    """
    d_sae = bias.size
    peak = np.empty(n_groups, np.float32)
    index = np.empty(d_sae, np.int32)
    found = np.empty(d_sae, np.float32)
    exact = np.empty(d_sae, np.float32)
    key = np.empty(d_sae, np.int32)
    inf = np.float32(np.inf)
    for r in range(lo, hi):
        row = first + r
        if not half:
            score32 = scores32[r]
            if not group_max(score32, bias, peak, absolute):
                bad[row] = 1
                continue
            bound = bound_for(peak, n_candidates, np.float32(0))
            n = gather_between(score32, bias, peak, bound, inf, absolute, index, exact, 0)
            rank_keys(exact, n, absolute, key)
        else:
            score16 = scores16[r]
            if not group_max(score16, bias, peak, absolute):
                bad[row] = 1
                continue
            bound = bound_for(peak, n_candidates, -inf)
            n = gather_between(score16, bias, peak, bound, inf, absolute, index, found, 0)
            err2 = rescore(x[row], w, bias, found, index, 0, n, exact)
            rank_keys(exact, n, absolute, key)
            while n < d_sae:
                kth = key[n:n + 1]  # scratch: an integer that is reinterpreted as a float
                kth[0] = kth_key(key, n, k)
                safe = kth.view(np.float32)[0] - SIGMAS * np.float32(np.sqrt(err2 / max(n, 1)))
                if bound <= safe:
                    break
                n_more = gather_between(score16, bias, peak, safe, bound, absolute, index, found, n)
                err2 += rescore(x[row], w, bias, found, index, n, n_more, exact)
                n, bound = n_more, safe
                rank_keys(exact, n, absolute, key)
        keep_best(index, exact, key, n, k, feature[row], value[row])


@jit
@no_type_check
def peak_histogram(lo, hi, half, scores16, scores32, bias, n_groups, absolute, first, bad):
    """Histogram of positive group maxima by the upper 16 bits of their fp32 pattern."""
    histogram = np.zeros(1 << 15, np.int32)
    peak = np.empty(n_groups, np.float32)
    bits = peak.view(np.int32)
    for r in range(lo, hi):
        finite = group_max(scores16[r], bias, peak, absolute) if half else group_max(scores32[r], bias, peak, absolute)
        if not finite:
            bad[first + r] = 1
            continue
        for j in range(n_groups):
            if bits[j] > 0:
                histogram[bits[j] >> 16] += 1
    return histogram


@jit
@no_type_check
def grown(array, n):
    """The array, reallocated if it cannot hold n entries."""
    if n <= array.size:
        return array
    larger = np.empty(max(n, 2 * array.size), array.dtype)
    larger[: array.size] = array
    return larger


@jit
@no_type_check
def find_above(score, bias, excess, peak, index, found):
    """Features whose excess is positive, and their scores.

    Returns their number, and whether they are in ascending order: they are if all features were scanned; if few groups
    have hits, they come group by group.
    """
    d_sae, n_groups = bias.size, peak.size
    n_hit, n = 0, 0
    for j in range(n_groups):
        n_hit += peak[j] > 0
    ascending = n_hit * 4 > n_groups
    for j in range(1 if ascending else n_groups):
        if ascending or peak[j] > 0:
            for f in range(j, d_sae, 1 if ascending else n_groups):
                if excess[f] > 0:
                    index[n] = f
                    found[n] = as_float(score[f]) + bias[f]
                    n += 1
    return n, ascending


@jit
@no_type_check
def select_above(lo, hi, half, scores16, scores32, x, x_norm, w, w_norm, bias, low, threshold, trust, n_groups,
                 absolute, first, bad):
    """Active entries of rows lo:hi as CSR: features, values, entries per row, and the largest error as a fraction of BF16.

    Candidates are scores above low − trust · BF16 · ‖x‖ · ‖w‖ (fp32 scores: above low). Those whose exact value exceeds
    the threshold are kept.
    """
    d_sae = bias.size
    peak = np.empty(n_groups, np.float32)
    index = np.empty(d_sae, np.int32)
    found = np.empty(d_sae, np.float32)
    excess, zeros = np.empty(d_sae, np.float32), np.zeros(d_sae, np.float32)
    feature = np.empty(64 * (hi - lo) + 64, np.int32)
    value = np.empty(feature.size, np.float32)
    counts = np.zeros(hi - lo, np.int64)
    n_kept = 0
    worst = np.float32(0)
    for r in range(lo, hi):
        row = first + r
        unit = BF16 * x_norm[row] if half else np.float32(0)
        slope = trust * unit
        if half:
            poison = strip_excess(scores16[r], bias, low, slope, w_norm, excess, absolute)
        else:
            poison = strip_excess(scores32[r], bias, low, slope, w_norm, excess, absolute)
        if poison != 0:
            bad[row] = 1
            continue
        group_max(excess, zeros, peak, False)
        if half:
            n, ascending = find_above(scores16[r], bias, excess, peak, index, found)
        else:
            n, ascending = find_above(scores32[r], bias, excess, peak, index, found)
        feature = grown(feature, n_kept + n)
        value = grown(value, n_kept + n)
        before = n_kept
        for q in range(n):
            f, v = index[q], found[q]
            if half:
                v = dot(x[row], w[f]) + bias[f]
                worst = max(worst, abs(v - found[q]) / (unit * w_norm[f] + np.float32(1e-30)))
            a = abs(v) if absolute else v
            if a > threshold[f]:
                feature[n_kept] = f
                value[n_kept] = v
                n_kept += 1
        counts[r - lo] = n_kept - before
        if not ascending:
            sort_row(feature[before:n_kept], value[before:n_kept], n_kept - before)
    return feature[:n_kept], value[:n_kept], counts, worst
