"""Smaller circuits: thresholds, the n largest, and nothing left hanging.

A node belongs to a circuit if what it does reaches the output, so an *orphan* is a node from which no kept edge leads, one
after another, to OUTPUT; nodes without an edge are orphans too. No edge into a node is asked for: what drives it may be no
node at all (embeddings, sites without an SAE, all that lies below the thresholds), and yet it acts on the output. Where a
story from the first site to the output is wanted, `grounded` drops features that nothing in the circuit drives, as
circuit-tracer does; errors and skip paths, and the features of the first site, are where such a story may begin.
"""

import numpy as np
from jaxtyping import Bool, Int64

from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import OUTPUT, Nodes


def prune(
    circuit: Circuit, *, min_effect: float = 0.0, min_weight: float = 0.0, n_nodes: int | None = None,
    n_edges: int | None = None, grounded: bool = False,
) -> Circuit:
    """The nodes and edges that are large enough, without orphans; scores, which were of the whole, go.

    Args:
        circuit: to be pruned; it stays as it is.
        min_effect: least |effect| of a node.
        min_weight: least |weight| of an edge.
        n_nodes: at most so many nodes, the largest.
        n_edges: at most so many edges between those, the largest.
        grounded: drop features behind the first site that no node of the circuit drives, too.
    """
    nodes = (_size(circuit.effect) >= min_effect) & _largest(circuit.effect, n_nodes)
    smaller = circuit.take(nodes)
    edges = (_size(smaller.weight) >= min_weight) & _largest(smaller.weight, n_edges)
    return without_orphans(smaller.take(np.ones(len(smaller.nodes), dtype=bool), edges), grounded=grounded)


def without_orphans(circuit: Circuit, *, grounded: bool = False) -> Circuit:
    """The circuit without nodes that do not reach the output, and if asked for without features that nothing drives."""
    return circuit.take(connected(circuit.nodes, circuit.source, circuit.target, grounded=grounded))


def connected(
    nodes: Nodes, source: Int64[np.ndarray, " n_edges"], target: Int64[np.ndarray, " n_edges"], *, grounded: bool = False
) -> Bool[np.ndarray, " n_nodes"]:
    """Which nodes are no orphans.

    Args:
        nodes: all.
        source, target: edges as indices into them, or OUTPUT.
        grounded: as in `prune`.
    """
    may_begin = ~nodes.features | (nodes.site == (nodes.site.min() if len(nodes) else 0))
    stay = np.ones(len(nodes), dtype=bool)
    while True:
        there = np.append(stay, True)  # OUTPUT is −1, the last
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
    """Which nodes have a way to OUTPUT."""
    reached = np.zeros(n + 1, dtype=bool)
    reached[OUTPUT] = True
    while True:
        new = source[reached[target] & ~reached[source]]
        if not len(new):
            return reached[:-1]
        reached[new] = True


def _largest(numbers: np.ndarray, n: int | None) -> Bool[np.ndarray, " n_numbers"]:
    """The n largest by size; of equal ones the first."""
    chosen = np.ones(len(numbers), dtype=bool)
    if n is not None:
        chosen[np.argsort(-_size(numbers), kind="stable")[n:]] = False
    return chosen


def _size(numbers: np.ndarray) -> np.ndarray:
    """Absolute values; 0 where there is no number, as in graphs of other tools."""
    return np.nan_to_num(np.abs(numbers))
