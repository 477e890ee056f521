"""Influence of each node of an attribution graph on the logits, pruning by influence, and two scores of the graph.

The adjacency matrix A[target, source] holds direct effects. After Ameisen et al. 2025 ("Circuit tracing", methods) and
circuit-tracer's `graph.py`:

    Ã = |A|, rows normalised to sum to 1     influence = p (Ã + Ã² + …), p the logits' probabilities
    replacement   = I(tokens) / (I(tokens) + I(errors))                       influence that starts at tokens, not errors
    completeness  = Σ_t (1 − Σ_errors Ã[t, e]) (I_t + p_t) / Σ_t (I_t + p_t)  input to each node that isn't from errors
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.linalg import solve_triangular

Matrix = Float[np.ndarray, "n_nodes n_nodes"]
Mask = Bool[np.ndarray, " n_nodes"]


@dataclass(frozen=True)
class Kinds:
    """Masks of the node kinds; all other nodes are features."""

    tokens: Mask
    errors: Mask
    logits: Mask

    @property
    def features(self) -> Mask:
        """Mask of features: not tokens, errors (or skip paths) or logits."""
        return ~(self.tokens | self.errors | self.logits)

    def take(self, which: Mask) -> "Kinds":
        """The masks restricted to some nodes."""
        return Kinds(self.tokens[which], self.errors[which], self.logits[which])


@dataclass(frozen=True)
class Pruned:
    """The part of a graph that pruning keeps.

    Attributes:
        nodes: mask of nodes.
        edges: mask of entries of the matrix.
        cumulative: share of all influence held by a node and those above it; smaller means more influential.
    """

    nodes: Mask
    edges: Bool[np.ndarray, "n_nodes n_nodes"]
    cumulative: Float64[np.ndarray, " n_nodes"]


def normalised(adjacency: Float[np.ndarray, "n_targets n_sources"]) -> Float64[np.ndarray, "n_targets n_sources"]:
    """Absolute values with rows normalised to sum to 1; zero rows stay zero."""
    size = np.abs(adjacency.astype(np.float64))
    return size / np.maximum(size.sum(axis=1, keepdims=True), 1e-10)


def influence(shares: Matrix, weights: Float[np.ndarray, " n_nodes"]) -> Float64[np.ndarray, " n_nodes"]:
    """Compute weights · (Ã + Ã² + …) exactly.

    Args:
        shares: Ã, strictly lower triangular: no node acts on itself or on an earlier one.
        weights: weights of the targets to explain.
    """
    assert not np.triu(shares).any(), "nodes are in causal order"
    total = solve_triangular(np.eye(len(shares)) - shares, weights, trans="T", lower=True, unit_diagonal=True)
    return np.asarray(total - weights)


def prune(
    adjacency: Matrix, weights: Float[np.ndarray, " n_nodes"], kinds: Kinds, *, node_share: float = 0.8,
    edge_share: float = 0.98,
) -> Pruned:
    """Keep the nodes, then the edges between them, that carry these shares of all influence; drop dangling nodes.

    Tokens and logits always stay. Features and errors need an outgoing edge; features also need an incoming one.

    Args:
        adjacency: A, in causal order.
        weights: the logits' probabilities, 0 at other nodes.
        kinds: kinds of the nodes.
        node_share, edge_share: 0 to 1.
    """
    reached = influence(normalised(adjacency), weights)
    nodes = (reached >= _least(reached, node_share)) | kinds.tokens | kinds.logits
    shares = normalised(np.where(nodes[:, None] & nodes, adjacency, 0))
    strength = shares * (influence(shares, weights) + weights)[:, None]
    # zero entries are never edges, whatever the share
    edges = (strength >= _least(strength.ravel(), edge_share)) & (strength > 0)
    nodes, edges = _nothing_hanging(nodes, edges, kinds)
    return Pruned(nodes, edges, cumulative(reached))


def cumulative(reached: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Share of the total held by each number and all larger ones; ties keep their order."""
    order = np.argsort(-reached, kind="stable")
    share = np.empty(len(reached))
    share[order] = np.cumsum(reached[order]) / max(reached.sum(), 1e-300)
    return share


def scores(adjacency: Matrix, weights: Float[np.ndarray, " n_nodes"], kinds: Kinds) -> tuple[float, float]:
    """Replacement and completeness, 0 to 1; see the module docstring."""
    shares = normalised(adjacency)
    reached = influence(shares, weights)
    tokens, errors = reached[kinds.tokens].sum(), reached[kinds.errors].sum()
    known, on_output = 1 - shares[:, kinds.errors].sum(axis=1), reached + weights
    return float(tokens / max(tokens + errors, 1e-300)), float((known * on_output).sum() / max(on_output.sum(), 1e-300))


def _least(numbers: Float64[np.ndarray, " n"], share: float) -> float:
    """The smallest of the largest numbers that together make up this share of the sum."""
    ordered = -np.sort(-numbers)
    total = ordered.sum()
    if not total > 0:
        return float("inf")
    return float(ordered[min(int(np.searchsorted(np.cumsum(ordered) / total, share)), len(ordered) - 1)])


def _nothing_hanging(
    nodes: Mask, edges: Bool[np.ndarray, "n_nodes n_nodes"], kinds: Kinds
) -> tuple[Mask, Bool[np.ndarray, "n_nodes n_nodes"]]:
    fixed = kinds.tokens | kinds.logits
    while True:
        edges = edges & nodes[:, None] & nodes
        stay = nodes & (fixed | edges.any(axis=0)) & (~kinds.features | edges.any(axis=1))
        if (stay == nodes).all():
            return nodes, edges
        nodes = stay


def subgraph_scores(
    adjacency: Matrix, weights: Float[np.ndarray, " n_nodes"], kinds: Kinds, pinned: Mask
) -> tuple[float, float]:
    """Replacement and completeness of a subgraph: unpinned features count as errors, and their inputs are ignored."""
    unknown = kinds.errors | (kinds.features & ~pinned)
    left = np.where(unknown[:, None], 0, adjacency)
    return scores(left, weights, Kinds(kinds.tokens, unknown, kinds.logits))
