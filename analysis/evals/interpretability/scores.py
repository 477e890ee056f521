"""Scores of readable rules as predictors of feature activity, and token entropy of features.

    detection   balanced accuracy on rows where the feature is active vs other rows, half of them near misses (Paulo et al.
                2410.13928, §4.2; `analysis.labels.automatic`)
    fuzzing     balanced accuracy on tokens of contexts where it is active: active tokens vs others of the same context
                (§4.3 there: which of the marked tokens are marked correctly)
    entropy     H(token | active), in bits, plug-in estimate. Since few rows have few tokens, it is also given relative to
                the same number of random rows: 1 for a feature that is independent of the token
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.labels.automatic import Explainer, balanced_accuracy

LEAST_JUDGED = 4
_DRAWS = 8


def detection(explainer: Explainer, feature: int, rule_of: int) -> float | None:
    """Balanced accuracy of `rule_of`'s rule on held-out examples of `feature`; None if there are too few."""
    rows, active = explainer.judges(feature)
    return _accuracy(explainer, rule_of, rows, active)


def fuzzing(explainer: Explainer, feature: int, rule_of: int) -> float | None:
    """Balanced accuracy of `rule_of`'s rule on tokens of contexts in which `feature` is active; None if too few."""
    rows, active = explainer.judges(feature)
    rows = rows[active]
    others = in_context(explainer, feature, rows)
    return _accuracy(explainer, rule_of, np.concatenate([rows, others]), np.arange(len(rows) + len(others)) < len(rows))


def in_context(explainer: Explainer, feature: int, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """For each active row, a random inactive row of the same context, if there is one."""
    words, random = explainer.words, np.random.default_rng([explainer.seed, feature, 3])
    silent = words.kept.copy()
    silent[explainer.active(feature)[0]] = False
    found = []
    for row in rows.tolist():
        first = row // words.n_ctx * words.n_ctx
        here = first + np.flatnonzero(silent[first : first + words.n_ctx])
        found += [int(random.choice(here))] if len(here) else []
    return np.array(found, dtype=np.int64)


def _accuracy(
    explainer: Explainer, rule_of: int, rows: Int64[np.ndarray, " n"], active: Bool[np.ndarray, " n"]
) -> float | None:
    if min(active.sum(), (~active).sum()) < LEAST_JUDGED:
        return None
    return balanced_accuracy(explainer.rule(rule_of).says(explainer.words, rows), active)


def entropies(
    feature: Int64[np.ndarray, " nnz"], token: Int64[np.ndarray, " nnz"], d_sae: int
) -> Float64[np.ndarray, " d_sae"]:
    """H(token | active) of each feature, in bits (plug-in estimate); NaN for features that are never active.

    Args:
        feature, token: feature and token id of each activation.
        d_sae: number of features.
    """
    span = int(token.max(initial=0)) + 1
    keys, count = np.unique(feature * span + token, return_counts=True)
    of = keys // span
    total = np.bincount(of, count, d_sae)
    p = count / total[of]
    out = np.bincount(of, -p * np.log2(p), d_sae)
    out[total == 0] = np.nan
    return out


def entropy_by_chance(
    token: Int64[np.ndarray, " n"], sizes: Int64[np.ndarray, " n_sizes"], seed: int
) -> Float64[np.ndarray, " n_sizes"]:
    """Mean token entropy of random rows, for each sample size; interpolated between sizes a factor of 1.5 apart."""
    random = np.random.default_rng(seed)
    top = max(int(sizes.max(initial=1)), 2)
    grid = np.unique(np.append(np.floor(1.5 ** np.arange(np.log(top) / np.log(1.5) + 1)).astype(np.int64), top))
    mean = []
    for size in grid.clip(max=len(token)).tolist():
        drawn = np.concatenate([random.choice(token, size, replace=False) for _ in range(_DRAWS)])
        mean.append(entropies(np.arange(_DRAWS).repeat(size), drawn, _DRAWS).mean())
    return np.interp(np.log(sizes), np.log(grid), mean)
