"""How far a concept's own features are absorbed by others: pure functions of codes and of a probe for the concept.

A probe of the activations gives the concept a direction p (unit). Feature f adds a_f ⟨W_dec,f, p⟩ to the projection ⟨x, p⟩
of a row. The *main* features are those that stand for the concept. Rows are those where the probe sees the concept, and
rightly. Each definition gives a row a number, 0 for no absorption; they differ much, so each has a name of its own:

    full            no main feature is active; that with the largest part in the projection has |cos(W_dec, p)| ≥ 0.025 and
                    gives at least 0.4 of ⟨x, p⟩ (Chanin et al. 2409.14507, by projection as in SAEBench): 0 or 1
    fraction_2503   A / (A + M) where M < ⟨x, p⟩, else 0. M is what the main features give, A what all others with a
                    positive part give (SAEBench's paper, 2503.09532: τ_ps = −1, τ_pa = 0, A_max = d_sae)
    fraction_0.6    the same, A being of the 3 largest with |cos(W_dec, p)| ≥ 0.1, cut to ⟨x, p⟩ − M; 0 where they give less
                    than 0.4 of ⟨x, p⟩, and 1 where M ≤ 0 (SAEBench's code from pull request 62 on; about a tenth of the
                    paper's values)
    hierarchical    `fraction_0.6` whose A is of features below the concept alone: they are active, in at least 9 of 10 rows
                    that were looked at, where the concept is present. What absorbs a concept is special to it; a feature of
                    something else that merely has some of its direction is not (SAEBench issue 73)

Codes may be signed: a negative value along −p gives as much as a positive one along p, and what takes away from the
projection absorbs nothing. (SAEBench wants cos ≥ 0.025 and 0.1 with its sign, and its release 0.6.0 takes a main feature
with a negative value for a silent one. Where no value is negative, the two are one.)
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
"""Share of a feature's rows that hold the concept, from which it counts as one below it."""
LEAST_FIRES = 2
"""Active rows from which that share is believed."""
F1_JUMP, MOST_MAIN = 0.03, 10
"""Further main features are taken while each adds so much to the F1 of a sparse probe, up to so many."""


@dataclass(frozen=True)
class Parts:
    """What features have to do with a concept in some rows.

    Attributes:
        value: of every feature; no row is without.
        cosine: ⟨W_dec, p⟩ of unit rows.
        projection: ⟨x, p⟩ of each row.
        main: numbers of the main features.
        below: which features are special to the concept.
    """

    value: Float64[np.ndarray, "n d_sae"]
    cosine: Float64[np.ndarray, " d_sae"]
    projection: Float64[np.ndarray, " n"]
    main: Int64[np.ndarray, " n_main"]
    below: Bool[np.ndarray, " d_sae"]

    @property
    def given(self) -> Float64[np.ndarray, "n d_sae"]:
        """What each feature adds to the projection."""
        return self.value * self.cosine

    @property
    def by_main(self) -> Float64[np.ndarray, " n"]:
        """What the main features add."""
        return self.given[:, self.main].sum(1)


def absorbed(parts: Parts) -> dict[str, Float64[np.ndarray, " n"]]:
    """The absorption of each row by each definition."""
    near = np.abs(parts.cosine) >= COSINE
    return {
        "full": full(parts), "fraction_2503": fraction_of_paper(parts), "fraction_0.6": fraction_of_code(parts, near),
        "hierarchical": fraction_of_code(parts, near & parts.below),
    }


def full(parts: Parts) -> Float64[np.ndarray, " n"]:
    """See the head of this file."""
    given = parts.given
    top = given.argmax(1)
    silent = (np.abs(parts.value[:, parts.main]) < 1e-8).all(1)
    largest = np.take_along_axis(given, top[:, None], 1)[:, 0]
    much = (parts.projection >= 0) & (largest >= SHARE * parts.projection)
    return (silent & (np.abs(parts.cosine[top]) >= FULL_COSINE) & much).astype(np.float64)


def fraction_of_paper(parts: Parts) -> Float64[np.ndarray, " n"]:
    """See the head of this file."""
    given = parts.given.clip(min=0)
    given[:, parts.main] = 0
    others, main = given.sum(1), parts.by_main
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(others + main > 0, others / (others + main), others > 0)
    return np.where(main < parts.projection, share.clip(0, 1), 0.0)


def fraction_of_code(parts: Parts, absorbers: Bool[np.ndarray, " d_sae"]) -> Float64[np.ndarray, " n"]:
    """See the head of this file; `absorbers` are the features that may absorb, the main ones apart."""
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
    """The features that are active along +p in at least 9 of 10 rows with the concept, and in `LEAST_FIRES` rows.

    Args:
        codes: scipy array `[n, d_sae]`.
        present: which rows hold the concept.
        cosine: ⟨W_dec, p⟩.
    """
    along = ((codes.multiply(np.sign(cosine)[None, :])) > 0).astype(np.float64).tocsr()
    fires, inside = (np.asarray(part.sum(0)).reshape(-1) for part in (along, along[present]))
    return (fires >= LEAST_FIRES) & (inside >= BELOW * fires)


def main_features(
    codes: Any, present: Bool[np.ndarray, " n"], difference: Float64[np.ndarray, " d_sae"],
    cosine: Float64[np.ndarray, " d_sae"],
) -> Int64[np.ndarray, " n_main"]:
    """The features that stand for a concept: the first, and further ones while each adds 0.03 to a sparse probe's F1.

    Candidates are ranked by how much their mean along +p differs with the concept. SAEBench ranks by the weights of an L1
    probe that is trained by SGD and takes positive weights alone; a difference of means gives the same on every machine.

    Args:
        codes: scipy array `[n, d_sae]` of the rows that probes are fitted on.
        present: which of them hold the concept.
        difference: `probes.sparse.mean_difference` of these.
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
    """2 TP / (2 TP + FP + FN); 0 where nothing is said or true."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0


def parts_of(
    codes: Any, x: Float64[np.ndarray, "n d"], direction: Float64[np.ndarray, " d"], W_dec: Float64[np.ndarray, "d_sae d"],
    main: Int64[np.ndarray, " n_main"], special: Bool[np.ndarray, " d_sae"],
) -> Parts:
    """The parts of rows `x` and their codes, from the unit direction of a concept and unit decoder rows."""
    value = dense(codes, np.arange(codes.shape[1])).numpy()
    return Parts(value, W_dec @ direction, x @ direction, main, special)
