"""Stability of a circuit's nodes and edges across bootstraps of the examples, and across SAE seeds.

Across bootstraps: the interval of each mean effect; the *inclusion* of a node or edge, i.e. the share of draws in which it
is among the n largest |mean effects|; the Jaccard index of the sets chosen by two draws; and the *consensus*, the nodes
included in at least a given share of draws (after the consensus graphs of 2603.00523).

Across SAEs trained with other seeds: feature indices don't correspond, so features of two circuits are matched one to one
within each site by |cosine| of their decoder rows. Pairs with at least `SAME` count as the same feature.
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
"""Nodes or edges that draws choose from: those with the largest |mean| over all examples. Of 500,000 nodes most never come
close, and a table of every node in every draw wouldn't fit in memory."""
DRAWS = 1000
"""Draws that are compared pairwise; 1000 draws have half a million pairs."""
SAME = 0.7
"""Minimum |cosine| of decoder rows for features of two SAEs to count as the same."""


@dataclass(frozen=True)
class Stability:
    """Nodes or edges across bootstraps of the examples; arrays are indexed by candidate.

    Attributes:
        which: indices of the candidates in the effects, ascending.
        n: number chosen per draw.
        mean: mean effect over all examples.
        low, high: bootstrap interval of the mean.
        inclusion: share of draws in which the candidate is chosen.
        chosen: whether it is among the n largest over all examples.
        jaccard: Jaccard index of two draws' choices: mean over pairs of draws, and the central 95 % of pairs.
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
        """Indices, in the effects, of candidates chosen by at least this share of draws."""
        return self.which[self.inclusion >= share]

    def by_index(self, column: Float64[np.ndarray, " n_candidates"], n_all: int) -> Float64[np.ndarray, " n_all"]:
        """Expand a column to all nodes or edges, NaN where they aren't candidates."""
        out = np.full(n_all, np.nan)
        out[self.which] = column
        return out


def stability(
    effects: NodeEffects | EdgeEffects, n: int, *, n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0,
    candidates: int = CANDIDATES,
) -> Stability:
    """Inclusion, intervals and Jaccard index across bootstraps of the examples.

    Args:
        effects: effects per example of all nodes or edges that might be chosen.
        n: nodes or edges in the circuit.
        n_bootstraps: number of draws.
        seed: seed of the draws.
        candidates: number of candidates; at least n, preferably several times as many.
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
    """Mask of the n largest absolute values in each draw, without zeros; ties go to the first."""
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :n]
    chosen = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & (values != 0)


def _jaccard_of_draws(chosen: Bool[np.ndarray, "n_draws n_candidates"]) -> Interval:
    """Jaccard index over all pairs of the first `DRAWS` draws."""
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
    """Jaccard index of two circuits' nodes; 1 if both are empty."""
    a, b = set(first.triples), set(second.triples)
    return len(a & b) / len(a | b) if a | b else 1.0


@dataclass(frozen=True)
class AcrossSAEs:
    """Comparison of two circuits of one task, over SAEs with different seeds.

    Attributes:
        jaccard: Jaccard index of their nodes after matching features.
        there: share of the first circuit's features that the other SAE has at all, chosen or not. If it is low, the
            circuits differ because the dictionaries do.
        n_matched: number of matched features.
    """

    jaccard: float
    there: float
    n_matched: int


def across_saes(
    first: Nodes, first_model: CircuitModel, second: Nodes, second_model: CircuitModel, *, same: float = SAME
) -> AcrossSAEs:
    """Compare two circuits over different SAEs at the same sites.

    Args:
        first: a circuit.
        first_model: the model with its SAEs.
        second: another circuit of the same task.
        second_model: the model with its SAEs.
        same: minimum |cosine| for two features to count as the same.
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
    """(ours, theirs) indices of matched features."""
    if not cosine.size:
        return []
    return [(i, int(j)) for i, j in enumerate(match(cosine)) if j >= 0 and abs(cosine[i, j]) >= same]
