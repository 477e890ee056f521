"""Prune circuits: by threshold, to the n largest, and without orphans.

An *orphan* is a node with no path of kept edges to OUTPUT; nodes without edges are orphans too. A node needs no incoming
edge: what drives it may not be a node (embeddings, sites without an SAE, anything below the thresholds). If every path
should start at an input, `grounded` also drops features that nothing in the circuit drives, as circuit-tracer does. Paths
may start at errors, skip paths and the features of the first site.
"""

import numpy as np
from jaxtyping import Bool, Int64

from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import OUTPUT, Nodes


def prune(
    circuit: Circuit, *, min_effect: float = 0.0, min_weight: float = 0.0, n_nodes: int | None = None,
    n_edges: int | None = None, grounded: bool = False,
) -> Circuit:
    """Keep the nodes and edges that are large enough, and drop orphans. Scores are dropped: they were of the whole circuit.

    Args:
        circuit: the circuit to prune; it is not modified.
        min_effect: minimum |effect| of a node.
        min_weight: minimum |weight| of an edge.
        n_nodes: keep at most this many nodes, largest first.
        n_edges: keep at most this many edges between those nodes, largest first.
        grounded: also drop features after the first site that no node of the circuit drives.
    """
    nodes = (_size(circuit.effect) >= min_effect) & _largest(circuit.effect, n_nodes)
    smaller = circuit.take(nodes)
    edges = (_size(smaller.weight) >= min_weight) & _largest(smaller.weight, n_edges)
    return without_orphans(smaller.take(np.ones(len(smaller.nodes), dtype=bool), edges), grounded=grounded)


def without_orphans(circuit: Circuit, *, grounded: bool = False) -> Circuit:
    """Drop nodes that don't reach the output and, if `grounded`, features that nothing drives."""
    return circuit.take(connected(circuit.nodes, circuit.source, circuit.target, grounded=grounded))


def connected(
    nodes: Nodes, source: Int64[np.ndarray, " n_edges"], target: Int64[np.ndarray, " n_edges"], *, grounded: bool = False
) -> Bool[np.ndarray, " n_nodes"]:
    """Mask of the nodes that are not orphans.

    Args:
        nodes: all nodes.
        source, target: edges, as indices into `nodes`, or OUTPUT.
        grounded: as in `prune`.
    """
    may_begin = ~nodes.features | (nodes.site == (nodes.site.min() if len(nodes) else 0))
    stay = np.ones(len(nodes), dtype=bool)
    while True:
        there = np.append(stay, True)  # index −1 is OUTPUT
        alive = there[source] & there[target]
        new = stay & _reach(len(nodes), source[alive], target[alive])
        if grounded:
            driven = np.zeros(len(nodes) + 1, dtype=bool)
            driven[target[alive]] = True
            new &= may_begin | driven[:-1]
        if (new == stay).all():
            return stay
        stay = new


def _reach(n: int, source: np.ndarray, target: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Mask of the nodes with a path to OUTPUT."""
    reached = np.zeros(n + 1, dtype=bool)
    reached[OUTPUT] = True
    while True:
        new = source[reached[target] & ~reached[source]]
        if not len(new):
            return reached[:-1]
        reached[new] = True


def _largest(numbers: np.ndarray, n: int | None) -> Bool[np.ndarray, " n_numbers"]:
    """Mask of the n largest by absolute value; ties go to the first."""
    chosen = np.ones(len(numbers), dtype=bool)
    if n is not None:
        chosen[np.argsort(-_size(numbers), kind="stable")[n:]] = False
    return chosen


def _size(numbers: np.ndarray) -> np.ndarray:
    """Absolute values; NaN counts as 0, as in graphs of other tools."""
    return np.nan_to_num(np.abs(numbers))
