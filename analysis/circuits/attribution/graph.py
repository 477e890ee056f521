"""An attribution graph: direct effects of a prompt's features, errors and tokens on every later feature and logit."""

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
    """An unpruned graph; arrays are indexed by node, in causal order.

    Attributes:
        name: name of the graph.
        model: name and identity of the language model, its number of layers and vocabulary size.
        prompt: text of each token.
        tokens: token ids.
        sites: sites of tokens, of SAEs and of MLPs without one, and of logits.
        nodes: tokens, features, errors (and skip paths), logits.
        value: a feature's activation; a logit minus the mean of all logits; the norm of any other node's vector.
        adjacency: `[target, source]`: the source's direct effect on the target's pre-activation or logit; rows of tokens
            and errors are zero.
        constant: the part of each target that no node accounts for: biases, and features left out of the graph.
        probability: probability of each logit; 0 at other nodes.
        n_active: number of active features, whether or not they are nodes.
        settings: how the graph was made, in JSON types.
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
        """Masks of tokens, errors (including skip-path nodes) and logits."""
        tokens, logits = self.nodes.site == 0, self.nodes.site == len(self.sites) - 1
        return Kinds(tokens, self.nodes.feature < 0, logits)

    @property
    def names(self) -> list[str]:
        """Node names, as `Circuit.names`: `mlp-9/f920@3`, `embedding/f281@1`, `logit/f338@7`."""
        return [name_of(self.sites, *triple) for triple in self.nodes.triples]

    def influence(self) -> Float64[np.ndarray, " n_nodes"]:
        """Influence of every node on the logits; see `influence.influence`."""
        return influence(normalised(self.adjacency), self.probability)

    def scores(self) -> dict[str, float]:
        """`replacement_score` and `completeness_score`; see `influence`."""
        replacement, completeness = scores(self.adjacency, self.probability, self.kinds)
        return {"replacement_score": replacement, "completeness_score": completeness}

    def prune(self, node_share: float = 0.8, edge_share: float = 0.98) -> Pruned:
        """Keep the nodes and edges that carry these shares of all influence; see `influence.prune`."""
        return prune(self.adjacency, self.probability, self.kinds, node_share=node_share, edge_share=edge_share)

    def total_effects(self, logit: int | None = None) -> Float64[np.ndarray, " n_nodes"]:
        """Total effect of each node on a logit, over all paths; minus the predicted change when the node is ablated.

        Features are assumed to respond in proportion: one that gains a share r of its value passes on r times its edges.
        First order, within the linear forward; exact unless a feature switches on or off.

        Args:
            logit: index of the logit's node; None is the most probable.
        """
        logit = int(self.probability.argmax()) if logit is None else logit
        edges = self.adjacency.astype(np.float64)
        answers = self.kinds.features & (self.value != 0)
        shares = np.zeros_like(edges)
        shares[answers] = edges[answers] / self.value[answers, None]
        # x = A[logit] + xᵀ shares: x sums over all paths, by their first node
        return np.asarray(solve_triangular(
            np.eye(len(edges)) - shares, edges[logit], trans="T", lower=True, unit_diagonal=True
        ))

    def circuit(self, node_share: float = 0.8, edge_share: float = 0.98) -> Circuit:
        """The pruned graph as a circuit, for drawing, saving and export.

        A node's effect is the predicted change of the most probable logit when the node is ablated. An edge's weight is
        its adjacency entry; from a logit to the output it is the logit's probability. Scores are of the whole graph;
        `pruned` holds those of the pruned graph alone.
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
        """Scores of the pruned graph alone."""
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
        """Influence and display texts of the kept nodes, for graph files."""
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
