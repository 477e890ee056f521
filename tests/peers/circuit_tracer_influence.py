"""Influence, pruning and scores of circuit-tracer's own `graph.py` beside ours, on the same adjacency matrices.

Of that file the functions alone are run: its imports reach for transformer-lens and nnsight.
"""

import __future__

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from analysis.circuits.attribution.attribute import Limits, attribute
from analysis.circuits.attribution.graph import AttributionGraph
from analysis.circuits.attribution.influence import influence, normalised
from tests.analysis.circuits.attribution.cases import native, taken_apart, with_transcoders

TOLERANCE = 1e-5
_TAKEN = {
    "normalize_matrix", "compute_influence", "compute_node_influence", "compute_edge_influence", "find_threshold",
    "PruneResult", "prune_graph", "compute_graph_scores",
}


def their_functions(checkout: Path) -> dict[str, Any]:
    """The functions by name."""
    path = checkout / "circuit_tracer" / "graph.py"
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in _TAKEN]
    assert {getattr(node, "name", None) for node in tree.body} == _TAKEN, "functions of 0.4.1"
    space: dict[str, Any] = {"torch": torch, "NamedTuple": NamedTuple}
    exec(compile(tree, str(path), "exec", __future__.annotations.compiler_flag), space)
    return space


def graphs() -> Iterator[tuple[str, AttributionGraph]]:
    """Graphs of prompts whose every MLP has a transcoder, whole and in part."""
    model = native()
    for skip in (False, True):
        linear = taken_apart(with_transcoders(model, skip=skip))
        for n in (10_000, 40):
            name = f"{'skip paths' if skip else 'no skip paths'}, at most {n} features"
            yield name, attribute(linear, Limits(max_features=n, logit_share=0.999, max_logits=4))


def in_their_order(graph: AttributionGraph) -> tuple[SimpleNamespace, np.ndarray]:
    """Their `Graph` as far as the functions read it, and which of our nodes each of its nodes is."""
    kinds = graph.kinds
    order = np.concatenate([np.flatnonzero(mask) for mask in (kinds.features, kinds.errors, kinds.tokens, kinds.logits)])
    found = SimpleNamespace(
        adjacency_matrix=torch.from_numpy(graph.adjacency[np.ix_(order, order)]),
        input_tokens=list(graph.tokens), logit_targets=np.flatnonzero(kinds.logits).tolist(),
        logit_probabilities=torch.from_numpy(graph.probability[kinds.logits]).float(),
        selected_features=np.flatnonzero(kinds.features).tolist(), cfg=SimpleNamespace(n_layers=graph.model["n_layers"]),
    )
    return found, order


def compare(theirs: dict[str, Any], graph: AttributionGraph) -> dict[str, bool]:
    """What agrees."""
    their, order = in_their_order(graph)
    weights = torch.zeros(len(order))
    weights[-len(their.logit_targets) :] = their.logit_probabilities
    reached = theirs["compute_node_influence"](their.adjacency_matrix, weights).numpy()
    ours = influence(normalised(graph.adjacency), graph.probability)[order]
    scores = graph.scores()
    found = {
        "influence": np.allclose(reached, ours, rtol=TOLERANCE, atol=TOLERANCE),
        "replacement and completeness": np.allclose(
            theirs["compute_graph_scores"](their), [scores["replacement_score"], scores["completeness_score"]],
            rtol=TOLERANCE, atol=0,
        ),
    }
    for nodes, edges in ((0.8, 0.98), (0.6, 0.9), (0.95, 0.99)):
        them, us = theirs["prune_graph"](their, nodes, edges), graph.prune(nodes, edges)
        # an edge of theirs may have weight 0 where the threshold is 0
        kept = them.edge_mask.numpy() & (their.adjacency_matrix.numpy() != 0)
        found[f"pruning to {nodes} and {edges}"] = (
            bool((them.node_mask.numpy() == us.nodes[order]).all()) and bool((kept == us.edges[np.ix_(order, order)]).all())
            and np.allclose(them.cumulative_scores.numpy(), us.cumulative[order], rtol=TOLERANCE, atol=TOLERANCE)
        )
    return found
