"""Loops that choose examples of each feature: top activations, some of each decile, random ones, near misses.

The choice depends only on the feature's column, the tokens and a seed: random numbers are a hash of (seed, feature, row),
so batches, shards and threads do not change it. The groups are described in `analysis/index/examples.py`.
"""

from typing import no_type_check

import numpy as np

from sae.kernels.cpu.runtime import jit

N_TENTHS = 10
N_GROUPS = 3 + N_TENTHS
TOP, RANDOM, NEAR = 0, 1 + N_TENTHS, 2 + N_TENTHS
"""Group numbers: top activations, then deciles from weak to strong, then random examples and near misses."""
N_EXAMPLES, N_OF_TENTH = 20, 10
SPARE = 8
"""Candidates per example that a group may keep."""
SAME_TOKENS = 12
"""Two examples with this many equal last tokens count as the same text."""
N_TRIGGERS = 32
TRIGGER_SHARE = 1 / 20
"""A token with this share of a feature's summed |value| is one of its triggers. If no near misses are found among them,
weaker tokens are tried too, up to N_TRIGGERS in all."""
N_VISITED = 512
"""Maximum number of occurrences of a trigger that are checked."""


@jit
@no_type_check
def mixed(x):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
@no_type_check
def drawn(seed, feature, row):
    """A pseudo-random uint64: hash of (seed, feature, row)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    return mixed(mixed(mixed(np.uint64(seed) + golden) + np.uint64(feature) + golden) + np.uint64(row) + golden)


@jit
@no_type_check
def offer(key, row, keys, rows, size):
    """Keep the `keys.size` smallest keys in a max-heap. Returns the number kept."""
    if size < keys.size:
        at = size
        while at > 0 and keys[(at - 1) // 2] < key:
            keys[at], rows[at] = keys[(at - 1) // 2], rows[(at - 1) // 2]
            at = (at - 1) // 2
        keys[at], rows[at] = key, row
        return size + 1
    if key >= keys[0]:
        return size
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] > keys[child]:
            child += 1
        if keys[child] <= key:
            break
        keys[at], rows[at] = keys[child], rows[child]
        at = child
    keys[at], rows[at] = key, row
    return size


@jit
@no_type_check
def same_text(a, b, tokens, n_ctx):
    """Whether the last SAME_TOKENS tokens up to rows a and b are equal (fewer if both contexts start there)."""
    for i in range(SAME_TOKENS):
        if a % n_ctx < i or b % n_ctx < i:
            return a % n_ctx < i and b % n_ctx < i
        if tokens[a - i] != tokens[b - i]:
            return False
    return True


@jit
@no_type_check
def keep_distinct(keys, rows, size, n_wanted, tokens, has_text, n_ctx, out):
    """Write the rows with the smallest keys to `out`, each from a different context and a different text.

    Remaining places are filled with repeated texts from other contexts. Rows are in order of their keys.
    """
    order = np.argsort(keys[:size])
    taken = np.zeros(size, np.uint8)
    chosen = np.empty(n_wanted, np.int64)
    n = 0
    for repeats in range(2):
        for i in range(size):
            if n == n_wanted:
                break
            row = rows[order[i]]
            fresh = taken[i] == 0
            for j in range(n):
                same_context = chosen[j] // n_ctx == row // n_ctx
                if same_context or (has_text and not repeats and same_text(chosen[j], row, tokens, n_ctx)):
                    fresh = False
                    break
            if fresh:
                chosen[n] = row
                taken[i] = 1
                n += 1
    n = 0
    for i in range(size):
        if taken[i]:
            out[n] = rows[order[i]]
            n += 1


@jit
@no_type_check
def token_masses(position, value, sign, tokens, mass, fires, touched):
    """Σ|v| by token over the values of one sign (0: all); `fires` counts rows of any sign. Returns the tokens touched."""
    n = 0
    for e in range(position.size):
        t = tokens[position[e]]
        if fires[t] == 0:
            touched[n] = t
            n += 1
        fires[t] += 1
        if sign * value[e] >= 0:
            mass[t] += np.float64(abs(value[e]))
    return n


@jit
@no_type_check
def token_summary(touched, mass):
    """The token with the largest mass (lowest id on ties), and the entropy of the masses in bits."""
    total, best = 0.0, touched[0]
    for t in touched:
        total += mass[t]
        if mass[t] > mass[best] or (mass[t] == mass[best] and t < best):
            best = t
    entropy = 0.0
    for t in touched:
        if mass[t] > 0:
            entropy -= mass[t] / total * np.log2(mass[t] / total)
    return best, entropy


@jit
@no_type_check
def tenths(sizes, edges):
    """Decile edges of sorted sizes."""
    for j in range(N_TENTHS):
        edges[j] = sizes[sizes.size * j // N_TENTHS]
    edges[N_TENTHS] = sizes[sizes.size - 1]


@jit
@no_type_check
def tenth_of(size, edges):
    """The decile of a size: the last one with lower edge ≤ size."""
    j = N_TENTHS - 1
    while j > 0 and edges[j] > size:
        j -= 1
    return j


@jit
@no_type_check
def choose_active(position, value, side, seed, feature, tokens, has_text, n_ctx, edges, population, out):
    """Top, decile and random examples of one sign of a column."""
    n_kept = SPARE * N_EXAMPLES
    keys = np.zeros((N_GROUPS, n_kept), np.uint64)
    rows = np.zeros((N_GROUPS, n_kept), np.int32)
    filled = np.zeros(N_GROUPS, np.int64)
    sign = np.float32(1 - 2 * side)
    mine = np.empty(position.size, np.float32)
    n = 0
    for e in range(position.size):
        if sign * value[e] > 0:
            mine[n] = abs(value[e])
            n += 1
    if n == 0:
        return
    tenths(np.sort(mine[:n]), edges)
    population[TOP] = population[RANDOM] = n
    context, peak, peak_row = -1, np.float32(0), 0
    for e in range(position.size):
        size = sign * value[e]
        if size <= 0:
            continue
        row = position[e]
        if row // n_ctx != context:
            if context >= 0:
                filled[TOP] = offer(strongest_first(peak, peak_row), peak_row, keys[TOP], rows[TOP], filled[TOP])
            context, peak = row // n_ctx, np.float32(0)
        if size > peak:
            peak, peak_row = size, row
        group = 1 + tenth_of(size, edges)
        population[group] += 1
        key = drawn(seed, feature, row)
        filled[group] = offer(key, row, keys[group, : SPARE * N_OF_TENTH], rows[group], filled[group])
        filled[RANDOM] = offer(key, row, keys[RANDOM], rows[RANDOM], filled[RANDOM])
    filled[TOP] = offer(strongest_first(peak, peak_row), peak_row, keys[TOP], rows[TOP], filled[TOP])
    for group in range(NEAR):
        n_wanted = N_EXAMPLES if group in (TOP, RANDOM) else N_OF_TENTH
        keep_distinct(keys[group], rows[group], filled[group], n_wanted, tokens, has_text, n_ctx, out[group])


@jit
@no_type_check
def strongest_first(size, row):
    """A sort key: larger sizes first, then lower rows."""
    bits = np.empty(1, np.float32)
    bits[0] = size
    return (np.uint64(0xFFFFFFFF - bits.view(np.uint32)[0]) << np.uint64(32)) | np.uint64(row)


@jit
@no_type_check
def choose_near(position, touched, mass, fires, seed, feature, tokens, n_ctx, token_indptr, token_rows, population, out):
    """Near misses: rows whose token is one of the feature's triggers but on which it is not active."""
    keys = np.zeros(SPARE * N_EXAMPLES, np.uint64)
    rows = np.zeros(SPARE * N_EXAMPLES, np.int32)
    filled = 0
    total = 0.0
    for t in touched:
        total += mass[t]
    used = np.zeros(touched.size, np.uint8)
    for _ in range(min(N_TRIGGERS, touched.size)):
        best = -1
        for j in range(touched.size):
            if not used[j] and (
                best < 0 or mass[touched[j]] > mass[touched[best]]
                or (mass[touched[j]] == mass[touched[best]] and touched[j] < touched[best])
            ):
                best = j
        used[best] = 1
        t = touched[best]
        if mass[t] == 0 or (filled >= N_EXAMPLES and mass[t] < TRIGGER_SHARE * total):
            break
        n = token_indptr[t + 1] - token_indptr[t]
        population += n - fires[t]
        if n == fires[t]:
            continue
        stride = (n + N_VISITED - 1) // N_VISITED
        start = np.int64(drawn(seed, feature, t) % np.uint64(stride))
        for at in range(token_indptr[t] + start, token_indptr[t + 1], stride):
            row = token_rows[at]
            found = np.searchsorted(position, row)
            if found == position.size or position[found] != row:
                filled = offer(drawn(seed, feature, row), row, keys, rows, filled)
    keep_distinct(keys, rows, filled, N_EXAMPLES, tokens, True, n_ctx, out)
    return population


@jit
@no_type_check
def choose(
    lo, hi, first_feature, indptr, position, value, n_ctx, n_sides, seed, tokens, has_text, token_indptr, token_rows,
    edges, population, examples, top_token, entropy,
):
    """Choose all example groups of each column, and summarise its tokens.

    Args:
        lo, hi: range of columns; column f is feature `first_feature + f`.
        indptr, position, value: the columns.
        n_ctx: rows per context.
        n_sides: 2 if values may be negative.
        seed: seed of the random groups.
        tokens: token of each row; undefined unless `has_text`.
        token_indptr, token_rows: the encoded rows of each token, ascending.
        edges: out `[n, n_sides, 11]`, decile edges of |value|.
        population: out `[n, n_sides, N_GROUPS]`, number of rows per group.
        examples: out `[n, n_sides, N_GROUPS, N_EXAMPLES]`, rows; unfilled places are left unchanged.
        top_token: out, the token with the largest Σ|value|.
        entropy: out, entropy of Σ|value| over tokens, in bits.
    """
    n_vocab = token_indptr.size - 1
    mass, fires = np.zeros(n_vocab), np.zeros(n_vocab, np.int64)
    for f in range(lo, hi):
        rows, values = position[indptr[f] : indptr[f + 1]], value[indptr[f] : indptr[f + 1]]
        if rows.size == 0:
            continue
        feature = first_feature + f
        touched = np.empty(min(rows.size, n_vocab), np.int64)
        for side in range(n_sides):
            choose_active(
                rows, values, side, seed, feature, tokens, has_text, n_ctx, edges[f, side], population[f, side],
                examples[f, side],
            )
            if has_text and population[f, side, TOP] > 0:
                sign = np.float32(1 - 2 * side)
                n = token_masses(rows, values, sign, tokens, mass, fires, touched)
                population[f, side, NEAR] = choose_near(
                    rows, touched[:n], mass, fires, seed, feature, tokens, n_ctx, token_indptr, token_rows,
                    population[f, side, NEAR], examples[f, side, NEAR],
                )
                clear(touched[:n], mass, fires)
        if has_text:
            n = token_masses(rows, values, np.float32(0), tokens, mass, fires, touched)
            top_token[f], entropy[f] = token_summary(touched[:n], mass)
            clear(touched[:n], mass, fires)


@jit
@no_type_check
def clear(touched, mass, fires):
    """Reset the counters of touched tokens."""
    for t in touched:
        mass[t] = 0.0
        fires[t] = 0
