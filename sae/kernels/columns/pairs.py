"""Loops over pairs of features: coactivation, and a 2-D layout.

As in `sae.kernels.columns.values`, ranges are of features and results do not depend on the number of threads.
"""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu.runtime import jit


@jit
@no_type_check
def sampled_sums(lo, hi, col_indptr, position, indptr, feature, value, n_ctx, taken, count, total, squares):
    """Active rows, Σv and Σv² of each feature over the `taken` contexts."""
    for f in range(lo, hi):
        for e in range(col_indptr[f], col_indptr[f + 1]):
            row = position[e]
            if taken[row // n_ctx]:
                at = indptr[row] + np.searchsorted(feature[indptr[row] : indptr[row + 1]], f)
                v = np.float64(value[at])
                count[f] += 1
                total[f] += v
                squares[f] += v * v


@jit
@no_type_check
def coactive(
    lo, hi, col_indptr, position, indptr, feature, value, n_ctx, taken, n_rows, count, total, squares,
    out_feature, out_jaccard, out_pearson,
):
    """The features that are most often coactive with each feature: by Jaccard index, then by id.

    Args:
        lo, hi: range of features.
        col_indptr, position: rows of each feature, by column.
        indptr, feature, value: the same code by row, features ascending.
        n_ctx: rows per context.
        taken: mask of contexts to use.
        n_rows: encoded rows of these contexts.
        count, total, squares: results of `sampled_sums`.
        out_feature: out `[d_sae, n_kept]`; unfilled places are left unchanged.
        out_jaccard: out, rows with both / rows with either.
        out_pearson: out, correlation of values over the n_rows rows, including zeros.
    """
    d_sae, n_kept = count.size, out_feature.shape[1]
    together, product = np.zeros(d_sae, np.int64), np.zeros(d_sae)
    seen = np.empty(d_sae, np.int64)
    for f in range(lo, hi):
        n_seen = 0
        for e in range(col_indptr[f], col_indptr[f + 1]):
            row = position[e]
            if not taken[row // n_ctx]:
                continue
            start, stop = indptr[row], indptr[row + 1]
            v = np.float64(value[start + np.searchsorted(feature[start:stop], f)])
            for other in range(start, stop):
                g = feature[other]
                if together[g] == 0:
                    seen[n_seen] = g
                    n_seen += 1
                together[g] += 1
                product[g] += v * np.float64(value[other])
        kept = 0
        for g in np.sort(seen[:n_seen]):
            if g != f:
                jaccard = together[g] / (count[f] + count[g] - together[g])
                if kept < n_kept or jaccard > out_jaccard[f, kept - 1]:
                    kept = insert(jaccard, g, out_jaccard[f], out_feature[f], kept)
        for i in range(kept):
            g = out_feature[f, i]
            spread = n_rows * squares[f] - total[f] * total[f]
            spread_other = n_rows * squares[g] - total[g] * total[g]
            together_spread = n_rows * product[g] - total[f] * total[g]
            both = spread * spread_other
            out_pearson[f, i] = together_spread / np.sqrt(both) if both > 0 else np.nan
        for i in range(n_seen):
            together[seen[i]] = 0
            product[seen[i]] = 0.0


HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""fp32 value of each fp16 bit pattern, because numba does not support fp16."""


@jit
@no_type_check
def add_products(starts, stops, factors, place, bits, halves, out):
    """`out[place] += factor · value` over some ranges of a list, each with its own factor; single-threaded, in order."""
    for i in range(starts.size):
        factor = factors[i]
        for e in range(starts[i], stops[i]):
            out[place[e]] += factor * np.float64(halves[bits[e]])


@jit
@no_type_check
def insert(score, item, scores, items, kept):
    """Insert an item into a list sorted by descending score, after equal scores; returns the new length."""
    if kept < scores.size:
        kept += 1
    at = kept - 1
    while at > 0 and scores[at - 1] < score:
        scores[at], items[at] = scores[at - 1], items[at - 1]
        at -= 1
    scores[at], items[at] = score, item
    return kept


@jit
@no_type_check
def spread_out(neighbour, weight, place, n_rounds, n_away, seed):
    """Lay out points in 2-D so that neighbours are close and others are not; in place.

    Stochastic gradient ascent on the likelihood of LargeVis (Tang et al. 2016, 1602.00370, eq. 6): the ends of each edge
    (i, j) attract with probability 1 / (1 + d²), and `n_away` random points repel i. Single-threaded: the order matters.

    Args:
        neighbour: `[n, k]`, −1 for none.
        weight: `[n, k]`, 0 to 1: fraction of the rounds in which an edge moves its ends.
        place: `[n, 2]`, initial positions; overwritten with the result.
        n_rounds: passes over all edges; the step size decreases linearly to 0.
        n_away: negative samples per edge.
        seed: seed of the negative samples.
    """
    n, k = neighbour.shape
    state = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x853C49E6748FEA9B)
    for round_ in range(n_rounds):
        rate = 1.0 - round_ / n_rounds
        for i in range(n):
            for e in range(k):
                j = neighbour[i, e]
                if j < 0 or int(round_ * weight[i, e]) == int((round_ + 1) * weight[i, e]):
                    continue
                pull(place, i, j, rate)
                for _ in range(n_away):
                    state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                    other = int((state >> np.uint64(33)) % np.uint64(n))
                    if other != i and other != j:
                        push(place, i, other, rate)


@jit
@no_type_check
def pull(place, i, j, rate):
    """Step along the gradient of log 1 / (1 + d²), split between both ends."""
    dx, dy = place[j, 0] - place[i, 0], place[j, 1] - place[i, 1]
    by = rate * 2.0 / (1.0 + dx * dx + dy * dy)
    mx, my = clipped(by * dx), clipped(by * dy)
    place[i, 0] += mx / 2
    place[i, 1] += my / 2
    place[j, 0] -= mx / 2
    place[j, 1] -= my / 2


@jit
@no_type_check
def push(place, i, other, rate):
    """Step along the gradient of log (1 − 1 / (1 + d²)), of i only."""
    dx, dy = place[other, 0] - place[i, 0], place[other, 1] - place[i, 1]
    square = dx * dx + dy * dy
    by = rate * 2.0 / ((0.01 + square) * (1.0 + square))
    place[i, 0] -= clipped(by * dx)
    place[i, 1] -= clipped(by * dy)


@jit
@no_type_check
def clipped(x):
    """Clip x to ±4, so that one close pair cannot throw a point far away."""
    return min(max(x, -4.0), 4.0)
