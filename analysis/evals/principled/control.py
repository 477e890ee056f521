"""Sparse control: change an attribute of an activation by editing a few features (2405.08366, §4.2).

The source a_s and the target a_t are activations of two prompts that differ in one attribute. At most k features active in
the source are removed and at most k features active in the target are added:

    a' = a_s − Σ_R f_i(s) u_i + Σ_A f_j(t) u_j          |R|, |A| ≤ k

Features are chosen greedily, each step minimising the squared distance of a' to a_t, until none reduces it. A feature
active in both can take its new value in one step, which counts as one removal and one addition. The *weight* of an edit is
the share of the reconstructions made up by the edited features; a feature's share of â − b is ⟨f u, â − b⟩ / ‖â − b‖² (the
shares of all active features sum to 1). Smaller means more surgical.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Edit:
    """One example's edit.

    Attributes:
        change: vector added to the source.
        removed, added: indices of the removed and added features.
        weight: sum of |share| of the removed features in the source's and of the added ones in the target's reconstruction.
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
        """Share of each feature in their sum, â − b."""
        total = self.vector.sum(0)
        return self.vector @ total / max(float(total @ total), 1e-30)


def active(codes: Any, row: int, W_dec: Float64[np.ndarray, "d_sae d"]) -> Active:
    """Active features in a row of a scipy CSR array `[n, d_sae]`."""
    mine = slice(codes.indptr[row], codes.indptr[row + 1])
    feature = codes.indices[mine].astype(np.int64)
    return Active(feature, codes.data[mine][:, None] * W_dec[feature])


def greedy_edit(
    source: Float64[np.ndarray, " d"], target: Float64[np.ndarray, " d"], of_source: Active, of_target: Active, k: int
) -> Edit:
    """The greedy edit that removes and adds at most k features each; see the module docstring."""
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
        # a feature is removed at most once and added at most once
        allowed &= (features != features[best]) | (cost + cost[best] <= 1).all(1)
    removed, added = (tuple(int(features[c]) for c in chosen if cost[c, side]) for side in (0, 1))
    parts = [dict(zip(one.feature.tolist(), one.part, strict=True)) for one in (of_source, of_target)]
    weight = sum(abs(parts[0][f]) for f in removed) + sum(abs(parts[1][f]) for f in added)
    return Edit(moves[chosen].sum(0), removed, added, float(weight))


def _moves(
    a: Active, b: Active
) -> tuple[Float64[np.ndarray, "n d"], Int64[np.ndarray, "n two"], Int64[np.ndarray, " n"]]:
    """Candidate steps: vector, (removals, additions), and feature; steps that do both come last."""
    _, in_a, in_b = np.intersect1d(a.feature, b.feature, return_indices=True)
    vectors = [-a.vector, b.vector, b.vector[in_b] - a.vector[in_a]]
    kinds = [np.tile(cost, (len(v), 1)) for cost, v in zip(([1, 0], [0, 1], [1, 1]), vectors, strict=True)]
    features = np.concatenate([a.feature, b.feature, a.feature[in_a]])
    return np.concatenate(vectors), np.concatenate(kinds).astype(np.int64), features.astype(np.int64)


def norm_matched(change: Float64[np.ndarray, "n d"], seed: int) -> Float64[np.ndarray, "n d"]:
    """Random directions with the norm of each change: the placebo of an edit."""
    drawn = np.random.default_rng(seed).normal(size=change.shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * np.linalg.norm(change, axis=1, keepdims=True)
