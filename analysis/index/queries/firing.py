"""The features that fire on search matches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.index.types import Hit


@dataclass(frozen=True)
class Firing:
    """A feature's activity on matches."""

    feature: int
    n_hits: int
    """Number of matches with at least one active token."""
    value: float
    """Largest value by magnitude on any match."""


def at_hits(index: "Index", hits: Sequence["Hit"], n: int = 100) -> list[Firing]:
    """The features that fire on matches, those that rarely fire elsewhere first.

    Features that fire on at least half of the matches come first; within each part the order is by lift,
    n_hits / (density + 1 / n_rows), as common features fire on any text.

    Args:
        index: the index that was searched.
        hits: matches of a search.
        n: maximum number of features.
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
    # firing on half of the matches counts for more than one chance match with high lift
    agreed = (2 * counts >= len(hits)).astype(np.int64)
    order = np.lexsort((np.arange(len(counts)), -lift, -agreed))
    found = [int(i) for i in order if counts[i]][:n]
    return [Firing(i, int(counts[i]), float(strongest[i])) for i in found]
