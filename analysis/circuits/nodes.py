"""Nodes and edges of a circuit with their effects: features, errors and skip paths, at one position or summed over all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import sparse

ERROR, SKIP = -1, -2
"""Feature indices of the site's error vector and of its skip path (any offset that depends on the input)."""
ANYWHERE = -1
"""Position of a node that is summed over positions."""
OUTPUT = -1
"""Target of an edge into the metric."""


@dataclass(frozen=True)
class Nodes:
    """Nodes as three columns, unique, sorted by site, position, feature.

    Attributes:
        site: index into `CircuitModel.sites`.
        position: token position in the prompt, from 0 (BOS included), or ANYWHERE.
        feature: feature of the site's SAE, or ERROR, or SKIP.
    """

    site: Int64[np.ndarray, " n_nodes"]
    position: Int64[np.ndarray, " n_nodes"]
    feature: Int64[np.ndarray, " n_nodes"]

    def __len__(self) -> int:
        return len(self.site)

    @classmethod
    def empty(cls) -> "Nodes":
        """No nodes."""
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none, none)

    @classmethod
    def of(cls, triples: Sequence[tuple[int, int, int]]) -> "Nodes":
        """Nodes from (site, position, feature) triples, in any order."""
        columns = np.unique(np.asarray(triples, dtype=np.int64).reshape(-1, 3), axis=0)
        return cls(columns[:, 0], columns[:, 1], columns[:, 2])

    @property
    def triples(self) -> list[tuple[int, int, int]]:
        """(site, position, feature) of each node."""
        return list(zip(self.site.tolist(), self.position.tolist(), self.feature.tolist(), strict=True))

    def take(self, which: Bool[np.ndarray, " n_nodes"] | Int64[np.ndarray, " n"]) -> "Nodes":
        """Select nodes by mask or by ascending indices."""
        return Nodes(self.site[which], self.position[which], self.feature[which])

    def at(self, site: int) -> "Nodes":
        """The nodes of one site."""
        return self.take(self.site == site)

    @property
    def features(self) -> Bool[np.ndarray, " n_nodes"]:
        """Mask of the nodes that are features, not errors or skip paths."""
        return self.feature >= 0


@dataclass(frozen=True)
class NodeEffects:
    """Effect of each node on the metric in each example; entries that are not stored are 0.

    A node's effect is the change of the metric when this node alone is patched from its clean to its reference value
    (Marks et al. 2403.19647, eq. 2): m(do(node = reference)) − m(clean). Nodes that support the clean answer are negative.
    """

    nodes: Nodes
    values: sparse.csr_array
    """`[n_examples, n_nodes]`, fp64."""

    @property
    def mean(self) -> Float64[np.ndarray, " n_nodes"]:
        """Mean over examples."""
        return np.asarray(self.values.sum(axis=0)).ravel() / max(self.values.shape[0], 1)

    def take(self, which: Bool[np.ndarray, " n_nodes"] | Int64[np.ndarray, " n"]) -> "NodeEffects":
        """Select nodes by mask or by ascending indices."""
        columns = np.flatnonzero(which) if which.dtype == bool else which
        return NodeEffects(self.nodes.take(columns), self.values[:, columns])

    def largest(self, n: int) -> "NodeEffects":
        """The n nodes with the largest absolute mean effect; nodes without an effect are left out."""
        size = np.abs(self.mean)
        order = np.argsort(-size, kind="stable")[:n]
        return self.take(np.sort(order[size[order] > 0]))

    def over_positions(self) -> "NodeEffects":
        """Sum each node's effects over positions (Marks et al., aggregation for non-templated data)."""
        keys = np.stack([self.nodes.site, self.nodes.feature], axis=1)
        found, which = np.unique(keys, axis=0, return_inverse=True)
        to = sparse.csr_array(
            (np.ones(len(keys)), (np.arange(len(keys)), which.ravel())), shape=(len(keys), len(found))
        )
        nodes = Nodes(found[:, 0], np.full(len(found), ANYWHERE, dtype=np.int64), found[:, 1])
        return NodeEffects(nodes, sparse.csr_array(self.values @ to))


def joined(parts: Sequence[NodeEffects]) -> NodeEffects:
    """Concatenate effects over examples; a node missing from a part has effect 0 there."""
    nodes = Nodes.of([triple for part in parts for triple in part.nodes.triples])
    place = {triple: i for i, triple in enumerate(nodes.triples)}
    rows, columns, values, n = [], [], [], 0
    for part in parts:
        coo = part.values.tocoo()
        where = np.array([place[t] for t in part.nodes.triples], dtype=np.int64)
        rows.append(coo.coords[0] + n)
        columns.append(where[coo.coords[1]])
        values.append(coo.data)
        n += part.values.shape[0]
    cells = (np.concatenate(rows), np.concatenate(columns))
    return NodeEffects(nodes, sparse.csr_array((np.concatenate(values), cells), shape=(n, len(nodes))))


@dataclass(frozen=True)
class EdgeEffects:
    """Effect of each edge on the metric in each example, through the direct path alone.

    The effect of an edge u → d is the change of the metric due to d's change when u is patched to its reference value and
    all nodes between them are held fixed (Marks et al. 2403.19647, eq. 5). Into OUTPUT it is the metric's own change.
    """

    nodes: Nodes
    source: Int64[np.ndarray, " n_edges"]
    """Index of the upstream node in `nodes`."""
    target: Int64[np.ndarray, " n_edges"]
    """Index of the downstream node, or OUTPUT."""
    values: sparse.csr_array
    """`[n_examples, n_edges]`, fp64."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def mean(self) -> Float64[np.ndarray, " n_edges"]:
        """Mean over examples."""
        return np.asarray(self.values.sum(axis=0)).ravel() / max(self.values.shape[0], 1)

    def take(self, which: Bool[np.ndarray, " n_edges"] | Int64[np.ndarray, " n"]) -> "EdgeEffects":
        """Select edges by mask or by indices; the nodes stay."""
        columns = np.flatnonzero(which) if which.dtype == bool else which
        return EdgeEffects(self.nodes, self.source[columns], self.target[columns], self.values[:, columns])

    @classmethod
    def none(cls, nodes: Nodes, n_examples: int) -> "EdgeEffects":
        """No edges between these nodes."""
        none = np.zeros(0, dtype=np.int64)
        return cls(nodes, none, none, sparse.csr_array((n_examples, 0), dtype=np.float64))

    def largest(self, n: int) -> "EdgeEffects":
        """The n edges with the largest absolute mean effect, in their order; edges without an effect are left out."""
        size = np.abs(self.mean)
        order = np.argsort(-size, kind="stable")[:n]
        return self.take(np.sort(order[size[order] > 0]))


def joined_edges(parts: Sequence[EdgeEffects]) -> EdgeEffects:
    """Concatenate effects of edges between the same nodes over examples."""
    nodes = parts[0].nodes
    keys = [part.source * (len(nodes) + 1) + part.target + 1 for part in parts]
    found = np.unique(np.concatenate(keys))
    blocks = []
    for part, key in zip(parts, keys, strict=True):
        coo = part.values.tocoo()
        cells = (coo.coords[0], np.searchsorted(found, key)[coo.coords[1]])
        blocks.append(sparse.csr_array((coo.data, cells), shape=(part.values.shape[0], len(found))))
    values = sparse.csr_array(sparse.vstack(blocks))
    return EdgeEffects(nodes, found // (len(nodes) + 1), found % (len(nodes) + 1) - 1, values)
