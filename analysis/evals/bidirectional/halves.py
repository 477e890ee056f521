"""The two halves of a signed feature: pure functions of codes.

Feature f has the halves f+ (active with a positive value) and f− (active with a negative value); in unsigned codes one of
them never occurs. On an axis of labelled opposites A and B (say singular and plural), half h scores

    δ_h = P(h | A) − P(h | B)

For two halves, one per end, the rule "A if the first is active, B if the second is, a fair coin if both or neither" has
balanced accuracy

    ½ + ¼ (δ_a − δ_b)

So the best pair has the largest and the smallest δ, and the best *single* feature is the one whose own halves differ most.
A feature that is active on A and inactive on B reaches ¾; only one that flips its sign reaches 1. This is AbsTopK's claim
for signed codes: one feature for both ends, where TopK needs two (Zhu et al. 2510.00404, §3). There is no published metric;
this one is ours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

RARER = 0.1
"""Minimum share of the rarer sign among a feature's active rows, for the feature to count as used with both."""
LEAST_FIRES = 20
"""Minimum number of active rows to judge that."""


def sign_counts(
    codes: Any, unit: Int64[np.ndarray, " n"], n_units: int
) -> tuple[Float64[np.ndarray, "n_units d_sae"], Float64[np.ndarray, "n_units d_sae"]]:
    """Per unit and feature, the number of rows with a positive and with a negative value.

    Args:
        codes: scipy array `[n, d_sae]`.
        unit: unit of each row.
        n_units: number of units.
    """
    from scipy.sparse import csr_array

    of_unit = csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))), shape=(n_units, len(unit)))
    positive, negative = ((of_unit @ (codes * sign > 0).astype(np.float64)).toarray() for sign in (1, -1))
    return positive, negative


def share_with_both(
    positive: Float64[np.ndarray, "*draws d_sae"], negative: Float64[np.ndarray, "*draws d_sae"]
) -> Float64[np.ndarray, "*draws"]:
    """Share of features used with both signs, among those active often enough."""
    total = positive + negative
    judged = total >= LEAST_FIRES
    both = judged & (np.minimum(positive, negative) >= RARER * total)
    with np.errstate(invalid="ignore"):
        return np.asarray(both.sum(-1) / judged.sum(-1), dtype=np.float64)


@dataclass(frozen=True)
class Half:
    """One sign of a feature."""

    feature: int
    sign: int

    def active(self, codes: Any) -> Bool[np.ndarray, " n"]:
        """Mask of the rows of a scipy array in which it is active."""
        return np.asarray(codes[:, [self.feature]].todense())[:, 0] * self.sign > 0


@dataclass(frozen=True)
class Ends:
    """The halves that represent the two ends of an axis."""

    a: Half
    b: Half

    @property
    def one_feature(self) -> bool:
        """Whether both are halves of one feature."""
        return self.a.feature == self.b.feature

    def points(self, codes: Any, is_a: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Per row: 1 if classified correctly, 0 if wrongly, ½ if undecided."""
        said = self.a.active(codes).astype(np.float64) - self.b.active(codes)
        return 0.5 + 0.5 * np.where(is_a, said, -said)


def worth(codes: Any, is_a: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "2 d_sae"]:
    """δ of every positive and of every negative half."""
    parts = [(codes * sign > 0).astype(np.float64) for sign in (1, -1)]
    return np.stack([np.asarray(p[is_a].mean(0) - p[~is_a].mean(0)).reshape(-1) for p in parts])


def best_pair(delta: Float64[np.ndarray, "2 d_sae"]) -> Ends:
    """The pair of halves, of any features, that separates the ends best."""
    a, b = (int(at) for at in (delta.argmax(), delta.argmin()))
    return Ends(_half(a, delta.shape[1]), _half(b, delta.shape[1]))


def best_feature(delta: Float64[np.ndarray, "2 d_sae"]) -> Ends:
    """The single feature whose two halves separate the ends best."""
    gap = delta[0] - delta[1]
    feature = int(np.abs(gap).argmax())
    sign = 1 if gap[feature] >= 0 else -1
    return Ends(Half(feature, sign), Half(feature, -sign))


def _half(at: int, d_sae: int) -> Half:
    return Half(at % d_sae, 1 if at < d_sae else -1)


def two_sided(forward: float, back: float) -> float:
    """How symmetrically steering along and against a direction moves a metric.

    Args:
        forward: change of the metric by steering along the direction.
        back: change of the metric by steering against it, by the same amount.

    Returns:
        1 if the changes are opposite and equal, 0 if one is zero, negative if both have the same sign.
    """
    largest = max(abs(forward), abs(back))
    if largest == 0:
        return 0.0
    smaller = min(abs(forward), abs(back)) / largest
    return smaller if forward * back < 0 else -smaller
