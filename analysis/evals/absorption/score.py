"""Absorption scores: pure functions of codes and of a probe for the concept.

A probe on the activations gives the concept's unit direction p. Feature f contributes a_f ⟨W_dec,f, p⟩ to a row's
projection ⟨x, p⟩. The *main* features are those that represent the concept. Rows are those where the probe correctly
detects the concept. Each definition scores a row, with 0 for no absorption. They differ a lot, so each has its own name:

    full            1 if no main feature is active and the feature with the largest contribution has |cos(W_dec, p)| ≥ 0.025
                    and contributes at least 0.4 of ⟨x, p⟩, else 0 (Chanin et al. 2409.14507, by projection as in SAEBench)
    fraction_2503   A / (A + M) if M < ⟨x, p⟩, else 0. M is the contribution of the main features, A that of all others with
                    a positive contribution (SAEBench's paper, 2503.09532: τ_ps = −1, τ_pa = 0, A_max = d_sae)
    fraction_0.6    the same, with A from the 3 largest with |cos(W_dec, p)| ≥ 0.1, capped at ⟨x, p⟩ − M; 0 if they
                    contribute less than 0.4 of ⟨x, p⟩, and 1 if M ≤ 0 (SAEBench's code since pull request 62; about a tenth
                    of the paper's values)
    hierarchical    `fraction_0.6` with A from features below the concept only: at least 9 of 10 rows where they are active
                    have the concept. Absorbing features are specific to the concept; a feature for something else that
                    merely shares some of the direction is not (SAEBench issue 73)

Codes may be signed: a negative value along −p counts like a positive one along p; negative contributions absorb nothing.
(SAEBench requires cos ≥ 0.025 and 0.1 with sign, and its release 0.6.0 treats a main feature with a negative value as
inactive. Without negative values the two agree.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.evals.probes.sparse import dense, ranked, sparse_probe

DEFINITIONS = ("full", "fraction_2503", "fraction_0.6", "hierarchical")
FULL_COSINE, COSINE, SHARE, MOST_ABSORBERS = 0.025, 0.1, 0.4, 3
"""Thresholds of SAEBench 0.6.0."""
BELOW = 0.9
"""Minimum share of a feature's active rows that have the concept, for it to count as below the concept."""
LEAST_FIRES = 2
"""Minimum number of active rows for that share to count."""
F1_JUMP, MOST_MAIN = 0.03, 10
"""Main features are added while each raises a sparse probe's F1 by at least F1_JUMP, up to MOST_MAIN."""


@dataclass(frozen=True)
class Parts:
    """Feature contributions to a concept's projection in some rows.

    Attributes:
        value: dense feature values.
        cosine: ⟨W_dec, p⟩ of unit decoder rows.
        projection: ⟨x, p⟩ of each row.
        main: indices of the main features.
        below: mask of features specific to the concept.
    """

    value: Float64[np.ndarray, "n d_sae"]
    cosine: Float64[np.ndarray, " d_sae"]
    projection: Float64[np.ndarray, " n"]
    main: Int64[np.ndarray, " n_main"]
    below: Bool[np.ndarray, " d_sae"]

    @property
    def given(self) -> Float64[np.ndarray, "n d_sae"]:
        """Contribution of each feature to the projection."""
        return self.value * self.cosine

    @property
    def by_main(self) -> Float64[np.ndarray, " n"]:
        """Total contribution of the main features."""
        return self.given[:, self.main].sum(1)


def absorbed(parts: Parts) -> dict[str, Float64[np.ndarray, " n"]]:
    """Absorption of each row under each definition."""
    near = np.abs(parts.cosine) >= COSINE
    return {
        "full": full(parts), "fraction_2503": fraction_of_paper(parts), "fraction_0.6": fraction_of_code(parts, near),
        "hierarchical": fraction_of_code(parts, near & parts.below),
    }


def full(parts: Parts) -> Float64[np.ndarray, " n"]:
    """Score `full`; see the module docstring."""
    given = parts.given
    top = given.argmax(1)
    silent = (np.abs(parts.value[:, parts.main]) < 1e-8).all(1)
    largest = np.take_along_axis(given, top[:, None], 1)[:, 0]
    much = (parts.projection >= 0) & (largest >= SHARE * parts.projection)
    return (silent & (np.abs(parts.cosine[top]) >= FULL_COSINE) & much).astype(np.float64)


def fraction_of_paper(parts: Parts) -> Float64[np.ndarray, " n"]:
    """Score `fraction_2503`; see the module docstring."""
    given = parts.given.clip(min=0)
    given[:, parts.main] = 0
    others, main = given.sum(1), parts.by_main
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(others + main > 0, others / (others + main), others > 0)
    return np.where(main < parts.projection, share.clip(0, 1), 0.0)


def fraction_of_code(parts: Parts, absorbers: Bool[np.ndarray, " d_sae"]) -> Float64[np.ndarray, " n"]:
    """Score `fraction_0.6`; see the module docstring. `absorbers`: features that may absorb, besides the main ones."""
    given = np.where(absorbers, parts.given, 0.0).clip(min=0)
    given[:, parts.main] = 0
    n = min(MOST_ABSORBERS, given.shape[1])
    others = np.partition(given, -n, axis=1)[:, -n:].sum(1)
    main, projection = parts.by_main, parts.projection
    cut = np.minimum(others, projection - main)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(main <= 0, 1.0, (cut / (cut + main)).clip(0, 1))
        little = others / projection < SHARE
    return np.where((main >= projection) | little | (projection <= 0), 0.0, share)


def below(codes: Any, present: Bool[np.ndarray, " n"], cosine: Float64[np.ndarray, " d_sae"]) -> Bool[np.ndarray, " d_sae"]:
    """Mask of features active along +p in at least `LEAST_FIRES` rows, 9 of 10 of which have the concept.

    Args:
        codes: scipy array `[n, d_sae]`.
        present: mask of rows with the concept.
        cosine: ⟨W_dec, p⟩.
    """
    along = ((codes.multiply(np.sign(cosine)[None, :])) > 0).astype(np.float64).tocsr()
    fires, inside = (np.asarray(part.sum(0)).reshape(-1) for part in (along, along[present]))
    return (fires >= LEAST_FIRES) & (inside >= BELOW * fires)


def main_features(
    codes: Any, present: Bool[np.ndarray, " n"], difference: Float64[np.ndarray, " d_sae"],
    cosine: Float64[np.ndarray, " d_sae"],
) -> Int64[np.ndarray, " n_main"]:
    """Features that represent a concept: the best one, and further ones while each adds 0.03 to a sparse probe's F1.

    Candidates are ranked by difference of means along +p. SAEBench ranks by the positive weights of an L1 probe trained
    with SGD; a difference of means is the same on every machine.

    Args:
        codes: scipy array `[n, d_sae]` of the rows for fitting probes.
        present: mask of rows with the concept.
        difference: `probes.sparse.mean_difference` of these rows.
        cosine: ⟨W_dec, p⟩.
    """
    gain = difference * np.sign(cosine)
    order = ranked(np.where(gain > 0, gain, 0.0), MOST_MAIN)
    order = order[gain[order] > 0]
    best, chosen = -np.inf, order[:0]
    for k in range(1, len(order) + 1):
        f1 = f1_of(sparse_probe(codes, present, order[:k]).logits(codes).numpy() > 0, present)
        if f1 <= best + F1_JUMP:
            break
        best, chosen = f1, order[:k]
    return chosen


def f1_of(said: Bool[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> float:
    """F1 = 2 TP / (2 TP + FP + FN); 0 if nothing is predicted or true."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0


def parts_of(
    codes: Any, x: Float64[np.ndarray, "n d"], direction: Float64[np.ndarray, " d"], W_dec: Float64[np.ndarray, "d_sae d"],
    main: Int64[np.ndarray, " n_main"], special: Bool[np.ndarray, " d_sae"],
) -> Parts:
    """Contributions in rows `x` with these codes, from a concept's unit direction and unit decoder rows."""
    value = dense(codes, np.arange(codes.shape[1])).numpy()
    return Parts(value, W_dec @ direction, x @ direction, main, special)
