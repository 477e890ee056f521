"""Sparse control: changing an attribute of an activation by switching a few features (2405.08366, §4.2).

The source a_s and the target a_t are activations of two prompts that differ in one attribute. Out of the features active in
either, at most k are taken out of a_s and at most k of those of a_t are put in,

    a' = a_s − Σ_R f_i(s) u_i + Σ_A f_j(t) u_j          |R|, |A| ≤ k

greedily, each step the one that brings a' nearest to a_t in squared distance, until none does; a feature active in both may
take its new value in one step, which counts as one out and one in. What the edit *weighs* is how much of the
reconstructions the changed features make up, each one's part in â − b being ⟨f u, â − b⟩ / ‖â − b‖² (the parts of all
active features sum to 1): the smaller, the more surgical.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Edit:
    """One example's edit.

    Attributes:
        change: what is added to the source.
        removed, added: numbers of the features taken out and put in.
        weight: Σ of the parts that they have in the reconstructions they are taken from or come from.
    """

    change: Float64[np.ndarray, " d"]
    removed: tuple[int, ...]
    added: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class Active:
    """The active features of one activation, as vectors f u."""

    feature: Int64[np.ndarray, " n"]
    vector: Float64[np.ndarray, "n d"]

    @property
    def part(self) -> Float64[np.ndarray, " n"]:
        """Of each in what all of them make up, â − b."""
        total = self.vector.sum(0)
        return self.vector @ total / max(float(total @ total), 1e-30)


def active(codes: Any, row: int, W_dec: Float64[np.ndarray, "d_sae d"]) -> Active:
    """What is active in a row of a scipy CSR array `[n, d_sae]`."""
    mine = slice(codes.indptr[row], codes.indptr[row + 1])
    feature = codes.indices[mine].astype(np.int64)
    return Active(feature, codes.data[mine][:, None] * W_dec[feature])


def greedy_edit(
    source: Float64[np.ndarray, " d"], target: Float64[np.ndarray, " d"], of_source: Active, of_target: Active, k: int
) -> Edit:
    """The edit of at most k features out and k in; see the head of this file."""
    moves, cost, features = _moves(of_source, of_target)
    gram, left = moves @ moves.T, target - source
    # ‖left − move‖² − ‖left‖² of each
    change = np.diag(gram) - 2 * moves @ left
    room, chosen, allowed = np.array([k, k]), list[int](), np.ones(len(moves), dtype=bool)
    while (allowed := allowed & (cost <= room).all(1)).any():
        best = int(np.where(allowed, change, np.inf).argmin())
        if change[best] >= 0:
            break
        chosen.append(best)
        change = change + 2 * gram[best]
        room = room - cost[best]
        # a feature is taken out once, and put in once
        allowed &= (features != features[best]) | (cost + cost[best] <= 1).all(1)
    removed, added = (tuple(int(features[c]) for c in chosen if cost[c, side]) for side in (0, 1))
    parts = [dict(zip(one.feature.tolist(), one.part, strict=True)) for one in (of_source, of_target)]
    weight = sum(abs(parts[0][f]) for f in removed) + sum(abs(parts[1][f]) for f in added)
    return Edit(moves[chosen].sum(0), removed, added, float(weight))


def _moves(
    a: Active, b: Active
) -> tuple[Float64[np.ndarray, "n d"], Int64[np.ndarray, "n two"], Int64[np.ndarray, " n"]]:
    """What each step may add, how many features it takes out and puts in, and whose; last those that do both at once."""
    _, in_a, in_b = np.intersect1d(a.feature, b.feature, return_indices=True)
    vectors = [-a.vector, b.vector, b.vector[in_b] - a.vector[in_a]]
    kinds = [np.tile(cost, (len(v), 1)) for cost, v in zip(([1, 0], [0, 1], [1, 1]), vectors, strict=True)]
    features = np.concatenate([a.feature, b.feature, a.feature[in_a]])
    return np.concatenate(vectors), np.concatenate(kinds).astype(np.int64), features.astype(np.int64)


def norm_matched(change: Float64[np.ndarray, "n d"], seed: int) -> Float64[np.ndarray, "n d"]:
    """Random directions as long as each change: the placebo of an edit."""
    drawn = np.random.default_rng(seed).normal(size=change.shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * np.linalg.norm(change, axis=1, keepdims=True)
