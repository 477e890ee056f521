"""An attribution graph: what every feature, error and token of one prompt adds to every feature and logit behind it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.linalg import solve_triangular

from analysis.circuits.attribution.influence import Kinds, Pruned, influence, normalised, prune, scores
from analysis.circuits.graph import Circuit, SiteInfo, name_of
from analysis.circuits.nodes import OUTPUT, Nodes


@dataclass(frozen=True)
class AttributionGraph:
    """A graph before pruning; arrays are by node, nodes in causal order.

    Attributes:
        name: of the graph.
        model: name and identity of the language model, its layers and its vocabulary.
        prompt: pieces of text by position.
        tokens: their ids.
        sites: of tokens, of the SAEs and of MLPs without one, of logits.
        nodes: tokens, features, errors (and skip paths), logits.
        value: a feature's activation, a logit less the mean of all; the norm of other nodes' vectors.
        adjacency: at [target, source] what the source adds to the target's pre-activation or logit; rows of tokens and
            errors are zero.
        constant: what a target has beside the nodes of this graph: biases, and features that it leaves out.
        probability: of logits; 0 at other nodes.
        n_active: features that were active, whether they are nodes or not.
        settings: how it was made, in JSON types.
    """

    name: str
    model: dict[str, Any]
    prompt: tuple[str, ...]
    tokens: tuple[int, ...]
    sites: tuple[SiteInfo, ...]
    nodes: Nodes
    value: Float64[np.ndarray, " n_nodes"]
    adjacency: Float32[np.ndarray, "n_nodes n_nodes"]
    constant: Float64[np.ndarray, " n_nodes"]
    probability: Float64[np.ndarray, " n_nodes"]
    n_active: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> Kinds:
        """Which nodes are tokens, errors (skip paths that are nodes among them), and logits."""
        tokens, logits = self.nodes.site == 0, self.nodes.site == len(self.sites) - 1
        return Kinds(tokens, self.nodes.feature < 0, logits)

    @property
    def names(self) -> list[str]:
        """As `Circuit.names`: `mlp-9/f920@3`, `embedding/f281@1`, `logit/f338@7`."""
        return [name_of(self.sites, *triple) for triple in self.nodes.triples]

    def influence(self) -> Float64[np.ndarray, " n_nodes"]:
        """Of every node on the logits; see `influence.influence`."""
        return influence(normalised(self.adjacency), self.probability)

    def scores(self) -> dict[str, float]:
        """`replacement_score` and `completeness_score`; see `influence`."""
        replacement, completeness = scores(self.adjacency, self.probability, self.kinds)
        return {"replacement_score": replacement, "completeness_score": completeness}

    def prune(self, node_share: float = 0.8, edge_share: float = 0.98) -> Pruned:
        """What carries these shares of all influence; see `influence.prune`."""
        return prune(self.adjacency, self.probability, self.kinds, node_share=node_share, edge_share=edge_share)

    def total_effects(self, logit: int | None = None) -> Float64[np.ndarray, " n_nodes"]:
        """What all paths from each node together add to a logit: minus what taking the node away does to it.

        Features answer in proportion, as long as they stay active: a feature that gains the share r of its value passes on
        r times its edges. A first-order statement within the linear forward, exact up to features that switch.

        Args:
            logit: index of its node; None is the most probable.
        """
        logit = int(self.probability.argmax()) if logit is None else logit
        edges = self.adjacency.astype(np.float64)
        answers = self.kinds.features & (self.value != 0)
        shares = np.zeros_like(edges)
        shares[answers] = edges[answers] / self.value[answers, None]
        # x = A[logit] + xᵀ shares: x is the sum over all paths, by their first node
        return np.asarray(solve_triangular(
            np.eye(len(edges)) - shares, edges[logit], trans="T", lower=True, unit_diagonal=True
        ))

    def circuit(self, node_share: float = 0.8, edge_share: float = 0.98) -> Circuit:
        """The pruned graph as a circuit, to be drawn, saved and passed on.

        A node's effect is the predicted change of the most probable logit when the node is taken away; a weight is an
        entry of the adjacency matrix, and that of a logit into the output its probability. Scores are of the whole graph;
        `pruned` are those of the part that is left, everything else taken away.
        """
        pruned, effect = self.prune(node_share, edge_share), -self.total_effects()
        place = np.cumsum(pruned.nodes) - 1
        target, source = np.nonzero(pruned.edges)
        logits = np.flatnonzero(self.kinds.logits)
        source = np.concatenate([place[source], place[logits]])
        weight = np.concatenate([self.adjacency[pruned.edges].astype(np.float64), self.probability[logits]])
        order = np.lexsort((np.concatenate([place[target], np.full(len(logits), OUTPUT)]), source))
        target = np.concatenate([place[target], np.full(len(logits), OUTPUT)])[order]
        kept, none = pruned.nodes, np.full(int(pruned.nodes.sum()), np.nan)
        nothing = np.full(len(source), np.nan)
        return Circuit(
            name=self.name, model=self.model, sites=self.sites, task=self._task(),
            settings={**self.settings, **self._notes(pruned), "node_share": node_share, "edge_share": edge_share},
            prompt=self.prompt, nodes=self.nodes.take(kept), effect=effect[kept], low=none, high=none,
            value=self.value[kept], reference=np.zeros(len(none)), inclusion=none, source=source[order], target=target,
            weight=weight[order], weight_low=nothing, weight_high=nothing, edge_inclusion=nothing,
            scores={**self.scores(), "pruned": self._of_pruned(pruned), "counts": self._counts(pruned)},
        )

    def _of_pruned(self, pruned: Pruned) -> dict[str, float]:
        """Scores of the nodes and edges that are left alone."""
        left = np.where(pruned.edges, self.adjacency, 0)[np.ix_(pruned.nodes, pruned.nodes)]
        replacement, completeness = scores(left, self.probability[pruned.nodes], self.kinds.take(pruned.nodes))
        return {"replacement_score": replacement, "completeness_score": completeness}

    def _counts(self, pruned: Pruned) -> dict[str, int]:
        return {
            "n_active_features": self.n_active, "n_nodes": len(self.nodes),
            "n_edges": int(np.count_nonzero(self.adjacency)),
            "n_nodes_pruned": int(pruned.nodes.sum()), "n_edges_pruned": int(pruned.edges.sum()),
        }

    def _task(self) -> dict[str, Any]:
        text = "".join(self.prompt)
        return {"name": "one prompt", "metric": "logits by probability", "prompt": text, "tokens": list(self.tokens)}

    def _notes(self, pruned: Pruned) -> dict[str, Any]:
        """What a graph file says of nodes beside their numbers, for those that are left."""
        names, kinds = self.names, self.kinds
        kept = np.flatnonzero(pruned.nodes).tolist()
        pieces = self.settings.get("logit_pieces", {})
        said = {
            names[i]: f'Output "{pieces.get(str(int(self.nodes.feature[i])), "")}" (p={self.probability[i]:.3f})'
            for i in kept if kinds.logits[i]
        }
        return {
            "influence": {names[i]: float(pruned.cumulative[i]) for i in kept},
            "clerps": {**{names[i]: f'Emb: "{self.prompt[int(self.nodes.position[i])]}"' for i in kept if kinds.tokens[i]},
                       **said},
        }
