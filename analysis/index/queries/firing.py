"""Which features fire at the places that a search has found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.index.types import Hit


@dataclass(frozen=True)
class Firing:
    """A feature at some places."""

    feature: int
    n_hits: int
    """Places at which it is active on at least one token."""
    value: float
    """The value of largest size at any of them."""


def at_hits(index: "Index", hits: Sequence["Hit"], n: int = 100) -> list[Firing]:
    """The features that fire at some places, those first that seldom fire elsewhere.

    A common feature fires at any place, so that those whose share of the places exceeds their density by most come
    first: the order is by n_hits / (density + 1 / n_rows), after whether it fires at half of the places.

    Args:
        index: in which the places are.
        hits: of a search.
        n: features at most.
    """
    counts = np.zeros(index.d_sae, dtype=np.int64)
    strongest = np.zeros(index.d_sae, dtype=np.float32)
    for hit in hits:
        code = index.code(hit.seq)
        assert code.indptr is not None
        entries = slice(int(code.indptr[hit.position]), int(code.indptr[hit.position + hit.length]))
        feature, value = code.feature[entries].numpy(), code.value[entries].numpy()
        counts[np.unique(feature)] += 1
        larger = np.abs(value) > np.abs(strongest[feature])
        for f, v in zip(feature[larger], value[larger], strict=True):
            if abs(v) > abs(strongest[f]):
                strongest[f] = v
    density = index.stats["density"].to_numpy()
    lift = counts / (density + 1 / max(1, index.n_rows))
    # what half of the places agree on is worth more than one lucky one
    agreed = (2 * counts >= len(hits)).astype(np.int64)
    order = np.lexsort((np.arange(len(counts)), -lift, -agreed))
    found = [int(i) for i in order if counts[i]][:n]
    return [Firing(i, int(counts[i]), float(strongest[i])) for i in found]
