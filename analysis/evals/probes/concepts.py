"""The label that each single feature predicts best: AUROC and F1.

The label is chosen by AUROC on the fitting examples and scored on the test examples, so that the best of many labels isn't
best by chance. For signed codes each sign counts as its own feature, and the better one is used.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.evals.common.result import PerFeature

LEAST_FIRES = 10
"""Minimum fitting examples in which a feature must be active to be scored."""


class Labels(NamedTuple):
    """One task: examples of both sides, as scipy arrays of codes `[n, d_sae]`, and their classes."""

    classes: tuple[str, ...]
    fitted: Any
    y_fit: Bool[np.ndarray, "n_fit n_classes"]
    tested: Any
    y_test: Bool[np.ndarray, "n_test n_classes"]


def concepts(tasks: Sequence[Labels], of: str, prefix: str, title: str = "") -> dict[str, PerFeature]:
    """The label that each feature predicts best, among those of all tasks, and how well.

    Args:
        tasks: tasks over the same features.
        of: what is labelled, for the formulas.
        prefix: prefix of the column names.
        title: prefix of the column titles.
    """
    names = [name for one in tasks for name in one.classes]
    d_sae = tasks[0].fitted.shape[1]
    halves = [_halves(one) for one in tasks]
    chosen_by = np.concatenate([areas(one.fitted, one.y_fit) for one in halves])
    tested = np.concatenate([areas(one.tested, one.y_test) for one in halves])
    f1 = np.concatenate([f1_when_active(one.tested, one.y_test) for one in halves])
    n_active = np.concatenate([np.tile(_fires(one.fitted), (len(one.classes), 1)) for one in halves])
    # positive halves of all features come before negative ones
    best = chosen_by.argmax(0)
    half = np.arange(d_sae) + d_sae * (chosen_by.max(0)[:d_sae] < chosen_by.max(0)[d_sae:])
    place = best[half], half
    known = n_active[place] >= LEAST_FIRES
    told = tuple(names[c] if there else None for c, there in zip(place[0].tolist(), known.tolist(), strict=True))
    area, score = (np.where(known, values[place], np.nan) for values in (tested, f1))
    columns = (
        ("concept", told, title or "Tells", "label", "the label for which the area under ROC is largest, of"),
        ("auc", area, f"{title} AUC".strip(), "AUC", "area under ROC for that label, by its value alone, held-out"),
        ("f1", score, f"{title} F1".strip(), "F1", "F1 of being active for that label, held-out"),
    )
    return {
        f"{prefix}{name}": PerFeature(values, head, unit, "none" if name == "concept" else "higher", f"{formula} {of}")
        for name, values, head, unit, formula in columns}


def areas(codes: Any, y: Bool[np.ndarray, "n n_classes"]) -> Float64[np.ndarray, "n_classes d_sae"]:
    """AUROC, P(v of a positive > v of a negative) + ½ P(equal), for each class and feature; inactive is 0.

    Exact, by ranks (Mann and Whitney 1947); NaN for a class without positives or without negatives.
    """
    codes = codes.tocsc()
    n, d_sae = codes.shape
    stored = codes.data != 0
    value, row = codes.data[stored], codes.indices[stored]
    feature = np.repeat(np.arange(d_sae), np.diff(codes.indptr))[stored]
    order = np.lexsort((value, feature))
    value, row, feature = value[order], row[order], feature[order]
    count = np.bincount(feature, minlength=d_sae)
    start = np.cumsum(count) - count
    n_silent, n_below = n - count, np.bincount(feature[value < 0], minlength=d_sae)
    rank = np.arange(len(value)) - start[feature] + 1.0 + np.where(value > 0, n_silent[feature], 0)
    rank, silent = _shared(rank, feature, value), n_below + (n_silent + 1) / 2
    out = np.full((y.shape[1], d_sae), np.nan)
    for c, positive in enumerate(y.T):
        n_positive = int(positive.sum())
        if 0 < n_positive < n:
            mine = positive[row]
            ranks = np.bincount(feature[mine], rank[mine], d_sae)
            ranks = ranks + (n_positive - np.bincount(feature[mine], minlength=d_sae)) * silent
            out[c] = (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive))
    return out


def _shared(
    rank: Float64[np.ndarray, " nnz"], feature: Int64[np.ndarray, " nnz"], value: Float64[np.ndarray, " nnz"]
) -> Float64[np.ndarray, " nnz"]:
    """Average the ranks of ties: equal values of a feature, which are adjacent."""
    begins = np.ones(len(rank), dtype=bool)
    begins[1:] = (feature[1:] != feature[:-1]) | (value[1:] != value[:-1])
    group = begins.cumsum() - 1
    n_groups = int(begins.sum())
    return (np.bincount(group, rank, n_groups) / np.bincount(group, minlength=n_groups).clip(min=1))[group]


def f1_when_active(codes: Any, y: Bool[np.ndarray, "n n_classes"]) -> Float64[np.ndarray, "n_classes d_sae"]:
    """F1 of "the feature is active" for each class."""
    active = (codes != 0).astype(np.float64)
    said = np.asarray(active.sum(0)).reshape(-1)
    right = (active.T @ y.astype(np.float64)).T
    return np.asarray(2 * right / (said + y.sum(0)[:, None]).clip(min=1))


def _halves(one: Labels) -> Labels:
    """Split features into positive and negative halves, concatenated."""
    from scipy.sparse import hstack

    fitted, tested = (hstack([codes.maximum(0), (-codes).maximum(0)], format="csr") for codes in (one.fitted, one.tested))
    return one._replace(fitted=fitted, tested=tested)


def _fires(codes: Any) -> Int64[np.ndarray, " n_features"]:
    return np.asarray((codes != 0).sum(0)).reshape(-1).astype(np.int64)
