"""The two halves of a signed feature: pure functions of codes.

Feature f has the halves f+ (active with a positive value) and f− (with a negative one); in codes that are not signed one of
them never occurs. On an axis of labelled opposites, A against B (singular and plural, say), half h is worth

    δ_h = P(h | A) − P(h | B)

and of two halves, one for each end, the rule "A where the first is active, B where the second is, a fair coin where both or
neither are" is right with balanced accuracy

    ½ + ¼ (δ_a − δ_b)

so that the best pair has the largest and the smallest δ, and the best *one* feature is that whose own halves differ most. A
feature that is active on A alone, and silent on B, reaches ¾ by itself; only one that turns its sign reaches 1. This is
what AbsTopK claims for signed codes: one feature for both ends, where TopK needs two (Zhu et al. 2510.00404, §3). There is
no published metric; this one was made here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

RARER = 0.1
"""Share of a feature's active rows that the rarer sign must have for the feature to count as used with both."""
LEAST_FIRES = 20
"""Active rows from which that is judged."""


def sign_counts(
    codes: Any, unit: Int64[np.ndarray, " n"], n_units: int
) -> tuple[Float64[np.ndarray, "n_units d_sae"], Float64[np.ndarray, "n_units d_sae"]]:
    """Rows of each unit in which each feature is positive, and negative.

    Args:
        codes: scipy array `[n, d_sae]`.
        unit: of each row.
        n_units: how many there are.
    """
    from scipy.sparse import csr_array

    of_unit = csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))), shape=(n_units, len(unit)))
    positive, negative = ((of_unit @ (codes * sign > 0).astype(np.float64)).toarray() for sign in (1, -1))
    return positive, negative


def share_with_both(
    positive: Float64[np.ndarray, "*draws d_sae"], negative: Float64[np.ndarray, "*draws d_sae"]
) -> Float64[np.ndarray, "*draws"]:
    """Of the features that are active often enough, the share that is used with both signs."""
    total = positive + negative
    judged = total >= LEAST_FIRES
    both = judged & (np.minimum(positive, negative) >= RARER * total)
    with np.errstate(invalid="ignore"):
        return np.asarray(both.sum(-1) / judged.sum(-1), dtype=np.float64)


@dataclass(frozen=True)
class Half:
    """One side of a feature."""

    feature: int
    sign: int

    def active(self, codes: Any) -> Bool[np.ndarray, " n"]:
        """In which rows of a scipy array it is active."""
        return np.asarray(codes[:, [self.feature]].todense())[:, 0] * self.sign > 0


@dataclass(frozen=True)
class Ends:
    """The halves that stand for the two ends of an axis."""

    a: Half
    b: Half

    @property
    def one_feature(self) -> bool:
        """Whether they are the two halves of one feature."""
        return self.a.feature == self.b.feature

    def points(self, codes: Any, is_a: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """1 for each row that is told rightly, ½ where nothing is said, 0 where it is told wrongly."""
        said = self.a.active(codes).astype(np.float64) - self.b.active(codes)
        return 0.5 + 0.5 * np.where(is_a, said, -said)


def worth(codes: Any, is_a: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "2 d_sae"]:
    """δ of every positive and of every negative half."""
    parts = [(codes * sign > 0).astype(np.float64) for sign in (1, -1)]
    return np.stack([np.asarray(p[is_a].mean(0) - p[~is_a].mean(0)).reshape(-1) for p in parts])


def best_pair(delta: Float64[np.ndarray, "2 d_sae"]) -> Ends:
    """The halves of any features that tell the ends apart best."""
    a, b = (int(at) for at in (delta.argmax(), delta.argmin()))
    return Ends(_half(a, delta.shape[1]), _half(b, delta.shape[1]))


def best_feature(delta: Float64[np.ndarray, "2 d_sae"]) -> Ends:
    """The feature whose two halves tell them apart best."""
    gap = delta[0] - delta[1]
    feature = int(np.abs(gap).argmax())
    sign = 1 if gap[feature] >= 0 else -1
    return Ends(Half(feature, sign), Half(feature, -sign))


def _half(at: int, d_sae: int) -> Half:
    return Half(at % d_sae, 1 if at < d_sae else -1)


def two_sided(forward: float, back: float) -> float:
    """How evenly steering one way and the other moves a metric in opposite directions.

    Args:
        forward: change of the metric by steering along a direction.
        back: change by as much against it.

    Returns:
        1 if one is minus the other, 0 if one does nothing, below 0 where both move it the same way.
    """
    largest = max(abs(forward), abs(back))
    if largest == 0:
        return 0.0
    smaller = min(abs(forward), abs(back)) / largest
    return smaller if forward * back < 0 else -smaller
