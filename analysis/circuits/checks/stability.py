"""Which nodes and edges of a circuit hang on the examples that were drawn, and which on the SAEs that were trained.

Over bootstraps of the examples: the interval of each mean effect; the *inclusion* of a node or edge, the share of draws in
which it is among the n largest |mean| effects; the Jaccard index of the sets chosen by two draws; and the *consensus*, what
is included in at least a given share of draws (after the consensus graphs of 2603.00523).

Over SAEs trained from other seeds: features have no common numbers, so those of two circuits are matched one to one within
each site by |cosine| of their decoder rows, and count as one from `SAME` on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.circuits.checks import bootstrap
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import EdgeEffects, NodeEffects, Nodes
from analysis.matching import cosines, match
from sae.metrics import Interval

CANDIDATES = 2000
"""Nodes or edges that a draw chooses from, those with the largest |mean| over all examples: of 500,000 nodes nearly all are
never near the n-th place, and a table of every node in every draw would not fit in memory."""
DRAWS = 1000
"""Draws whose pairs are compared: there are half a million of them."""
SAME = 0.7
"""|cosine| of decoder rows from which features of two SAEs count as the same."""


@dataclass(frozen=True)
class Stability:
    """How nodes or edges fare over bootstraps of the examples; arrays are over the candidates.

    Attributes:
        which: indices of the candidates into the effects they came from, ascending.
        n: how many are chosen.
        mean: effect over all examples.
        low, high: its interval.
        inclusion: share of draws in which it is chosen.
        chosen: among the n largest over all examples.
        jaccard: of the sets that two draws choose: mean over pairs of draws, and the range of 95 % of pairs.
    """

    which: Int64[np.ndarray, " n_candidates"]
    n: int
    mean: Float64[np.ndarray, " n_candidates"]
    low: Float64[np.ndarray, " n_candidates"]
    high: Float64[np.ndarray, " n_candidates"]
    inclusion: Float64[np.ndarray, " n_candidates"]
    chosen: Bool[np.ndarray, " n_candidates"]
    jaccard: Interval

    def consensus(self, share: float = 0.9) -> Int64[np.ndarray, " n"]:
        """Indices, into the effects, of what at least this share of draws chooses."""
        return self.which[self.inclusion >= share]

    def by_index(self, column: Float64[np.ndarray, " n_candidates"], n_all: int) -> Float64[np.ndarray, " n_all"]:
        """A column spread over all nodes or edges, NaN where they are no candidates."""
        out = np.full(n_all, np.nan)
        out[self.which] = column
        return out


def stability(
    effects: NodeEffects | EdgeEffects, n: int, *, n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0,
    candidates: int = CANDIDATES,
) -> Stability:
    """Inclusion, intervals and Jaccard index over bootstraps of the examples.

    Args:
        effects: of all nodes or edges that might be chosen, example by example.
        n: how many the circuit has.
        n_bootstraps: draws.
        seed: of the draws.
        candidates: how many may be chosen at all; at least n, better several times as many.
    """
    size = np.abs(effects.mean)
    which = np.sort(np.argsort(-size, kind="stable")[: max(candidates, n)])
    which = which[size[which] > 0]
    values = np.asarray(effects.values[:, which].todense(), dtype=np.float64)
    n = min(n, len(which))
    drawn = bootstrap.weights(len(values), n_bootstraps, seed) @ values
    chosen = largest(drawn, n)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    mean = values.mean(axis=0)
    return Stability(
        which, n, mean, low, high, chosen.mean(axis=0), largest(mean[None], n)[0], _jaccard_of_draws(chosen)
    )


def largest(
    values: Float64[np.ndarray, "n_draws n_candidates"], n: int
) -> Bool[np.ndarray, "n_draws n_candidates"]:
    """The n largest by size in each draw, without those that are 0; of equal ones the first."""
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :n]
    chosen = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & (values != 0)


def _jaccard_of_draws(chosen: Bool[np.ndarray, "n_draws n_candidates"]) -> Interval:
    """Over all pairs of draws, of the first `DRAWS`."""
    sets = chosen[:DRAWS].astype(np.float32)
    both, size = sets @ sets.T, sets.sum(axis=1)
    pairs = np.triu_indices(len(sets), 1)
    either = (size[:, None] + size[None] - both)[pairs]
    values = (both[pairs] / np.maximum(either, 1)).astype(np.float64)
    if not len(values):
        return Interval(1.0)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def jaccard(first: Nodes, second: Nodes) -> float:
    """Nodes in both over nodes in either; 1 for two circuits without nodes."""
    a, b = set(first.triples), set(second.triples)
    return len(a & b) / len(a | b) if a | b else 1.0


@dataclass(frozen=True)
class AcrossSAEs:
    """Two circuits of one task over SAEs of other seeds.

    Attributes:
        jaccard: of their nodes once features are matched.
        there: share of the first circuit's features that the other SAE has at all, chosen or not: where few are, the
            circuits differ because the dictionaries do.
        n_matched: features matched.
    """

    jaccard: float
    there: float
    n_matched: int


def across_saes(
    first: Nodes, first_model: CircuitModel, second: Nodes, second_model: CircuitModel, *, same: float = SAME
) -> AcrossSAEs:
    """Compare two circuits whose SAEs are other ones, at the same sites.

    Args:
        first: a circuit.
        first_model: its SAEs.
        second: another circuit of the same task.
        second_model: its SAEs.
        same: |cosine| from which two features are the same.
    """
    assert first_model.sites == second_model.sites, "circuits of other sites"
    names: dict[tuple[int, int], int] = {}
    found: list[Bool[np.ndarray, " n"]] = []
    for site in range(len(first_model.sites)):
        ours, theirs = (np.unique(nodes.at(site).feature[nodes.at(site).features]) for nodes in (first, second))
        W_dec, others = (m.saes[m.sites[site]].W_dec for m in (first_model, second_model))
        nearest = np.abs(cosines(others, W_dec[ours])).max(axis=1) if len(ours) else np.zeros(0)
        found.append(nearest >= same)
        names |= {(site, int(theirs[j])): int(ours[i]) for i, j in _pairs(cosines(others[theirs], W_dec[ours]), same)}
    renamed = [(s, p, names.get((s, f), f if f < 0 else -10 - f)) for s, p, f in second.triples]
    there = np.concatenate(found)
    return AcrossSAEs(
        jaccard(first, Nodes.of(renamed)), float(there.mean()) if len(there) else 1.0, len(names)
    )


def _pairs(cosine: Float64[np.ndarray, "n_ours n_theirs"], same: float) -> Sequence[tuple[int, int]]:
    """(ours, theirs) of those that are matched."""
    if not cosine.size:
        return []
    return [(i, int(j)) for i, j in enumerate(match(cosine)) if j >= 0 and abs(cosine[i, j]) >= same]
