"""A circuit: nodes, edges, their measurements, and everything needed to reproduce it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, SKIP, Nodes
from sae.errors import SaescopeError
from training.site import Site

if TYPE_CHECKING:
    from analysis.render.circuit import Drawing

KINDS = {ERROR: "error", SKIP: "skip"}
"""Name of a node that isn't a feature, in place of the feature's number."""
OUTPUT_NAME = "output"
_BY_NODE = ("effect", "low", "high", "value", "reference", "inclusion")
_BY_EDGE = ("weight", "weight_low", "weight_high", "edge_inclusion")


@dataclass(frozen=True)
class SiteInfo:
    """A site of a circuit and its SAE."""

    name: str
    """Short name, unique in its circuit, such as `resid-9` or `attn-12`."""
    site: Site
    sae: str
    """Hash of the SAE's weights (`sae.store.weights_hash`)."""
    d_sae: int
    variant: str
    run: str | None = None
    """Folder of the run, as given in the config."""
    skip: bool = False
    """Whether the SAE has a skip path or another input-dependent offset."""


@dataclass(frozen=True)
class Circuit:
    """A graph of features with its measurements. Arrays are indexed by node or by edge.

    Attributes:
        name: name of the circuit.
        model: name and identity of the language model (`Model.identity`).
        sites: sites in causal order; `nodes.site` indexes them.
        task: the resolved task config, the metric, and the model's performance.
        settings: estimator, reference, thresholds, numbers of examples, seeds.
        prompt: text of each token of one example, to label positions; empty where positions are summed.
        nodes: features, errors, skip paths.
        effect: mean effect over examples: change of the metric when the node is patched to its reference.
        low, high: bootstrap interval of that mean over examples.
        value, reference: mean value of a feature in clean and reference runs; mean norm of errors and skip paths.
        inclusion: share of bootstraps that choose the node, at the same circuit size; NaN where not measured.
        source, target: edges, as indices into `nodes`; target OUTPUT is the metric.
        weight, weight_low, weight_high: mean effect of an edge and its interval.
        edge_inclusion: as `inclusion`.
        scores: faithfulness, completeness, baselines and so on, in JSON types.
    """

    name: str
    model: dict[str, Any]
    sites: tuple[SiteInfo, ...]
    task: dict[str, Any]
    settings: dict[str, Any]
    prompt: tuple[str, ...]
    nodes: Nodes
    effect: Float64[np.ndarray, " n_nodes"]
    low: Float64[np.ndarray, " n_nodes"]
    high: Float64[np.ndarray, " n_nodes"]
    value: Float64[np.ndarray, " n_nodes"]
    reference: Float64[np.ndarray, " n_nodes"]
    inclusion: Float64[np.ndarray, " n_nodes"]
    source: Int64[np.ndarray, " n_edges"]
    target: Int64[np.ndarray, " n_edges"]
    weight: Float64[np.ndarray, " n_edges"]
    weight_low: Float64[np.ndarray, " n_edges"]
    weight_high: Float64[np.ndarray, " n_edges"]
    edge_inclusion: Float64[np.ndarray, " n_edges"]
    scores: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check lengths and indices."""
        n, e = len(self.nodes), len(self.source)
        assert all(len(getattr(self, name)) == n for name in _BY_NODE), "a number for each node"
        assert all(len(getattr(self, name)) == e for name in ("target", *_BY_EDGE)), "a number for each edge"
        assert not n or (self.nodes.site.min() >= 0 and self.nodes.site.max() < len(self.sites)), "nodes of these sites"
        assert not e or (self.source.min() >= 0 and max(self.source.max(), self.target.max()) < n), "edges of these nodes"

    @property
    def positional(self) -> bool:
        """Whether nodes have positions, rather than being summed over them."""
        return bool((self.nodes.position != ANYWHERE).all())

    @property
    def n_features(self) -> int:
        """Number of distinct features, errors and skip paths, ignoring positions."""
        return len(set(zip(self.nodes.site.tolist(), self.nodes.feature.tolist(), strict=True)))

    def node_name(self, i: SupportsIndex) -> str:
        """Node name such as `resid-9/f920@3`: site, feature (or `error`, `skip`), position if any; OUTPUT is `output`."""
        if int(i) == OUTPUT:
            return OUTPUT_NAME
        return name_of(self.sites, *(int(column[i]) for column in self._columns))

    @property
    def names(self) -> list[str]:
        """The name of every node."""
        return [self.node_name(i) for i in range(len(self.nodes))]

    def find(self, *names: str) -> Int64[np.ndarray, " n"]:
        """Indices of nodes by name, ascending; a name without a position matches every position.

        Raises:
            SaescopeError: no node has that name.
        """
        found = [self._find(name) for name in names]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    def select(self, *names: str) -> Nodes:
        """Nodes by name, for interventions; see `find`."""
        return self.nodes.take(self.find(*names))

    def table(self, of: Literal["nodes", "edges"] = "nodes") -> list[dict[str, Any]]:
        """Nodes or edges as rows for a data frame or a file, largest effects first; NaN becomes None."""
        rows = self.rows(of)
        by = self.effect if of == "nodes" else self.weight
        return [rows[i] for i in np.argsort(-np.nan_to_num(np.abs(by)), kind="stable")]

    def rows(self, of: Literal["nodes", "edges"] = "nodes") -> list[dict[str, Any]]:
        """Nodes or edges as rows, in the circuit's order; NaN becomes None."""
        return self._node_rows() if of == "nodes" else self._edge_rows()

    def take(
        self, nodes: Bool[np.ndarray, " n_nodes"], edges: Bool[np.ndarray, " n_edges"] | None = None
    ) -> "Circuit":
        """The subgraph of these nodes, with the selected edges between them. Scores are dropped: they were of the whole.

        Args:
            nodes: mask of nodes to keep.
            edges: mask of edges that may stay; None keeps all.
        """
        into = np.append(nodes, True)  # index −1 is OUTPUT
        stay = nodes[self.source] & into[self.target] & (True if edges is None else edges)
        if nodes.all() and stay.all():
            return self
        place = np.append(np.cumsum(nodes) - 1, OUTPUT)
        return replace(
            self, nodes=self.nodes.take(nodes), source=place[self.source[stay]], target=place[self.target[stay]],
            scores={}, **{name: getattr(self, name)[nodes] for name in _BY_NODE},
            **{name: getattr(self, name)[stay] for name in _BY_EDGE},
        )

    def without(self, *names: str) -> "Circuit":
        """Remove nodes and their edges; see `find` for names, and `prune.without_orphans` for orphans this leaves.

        Raises:
            SaescopeError: no node has that name.
        """
        stay = np.ones(len(self.nodes), dtype=bool)
        stay[self.find(*names)] = False
        return self.take(stay)

    def consensus(self, threshold: float = 0.9) -> "Circuit":
        """The nodes and edges chosen in at least this share of bootstraps (after CIRCUS, 2603.00523).

        Edges without a measured inclusion stay if both their nodes do.

        Raises:
            SaescopeError: inclusion was not measured.
        """
        if len(self.nodes) and np.isnan(self.inclusion).all():
            raise SaescopeError(
                f"The circuit {self.name} has no inclusion probabilities, so there is no consensus: measure its stability."
            )
        return self.take(self.inclusion >= threshold, np.isnan(self.edge_inclusion) | (self.edge_inclusion >= threshold))

    def figure(
        self, *, consensus: float = 0.9, max_edges: int = 300, labels: Mapping[str, str] | None = None
    ) -> "Drawing":
        """Draw the graph: sites from bottom to top, positions from left to right. Displays in a notebook, saves as HTML.

        Args:
            consensus: nodes with at least this inclusion get a ring.
            max_edges: draw at most this many edges, largest first.
            labels: feature labels, by node name with or without the position.
        """
        from analysis.render.circuit import draw

        return draw(self, consensus=consensus, max_edges=max_edges, labels=labels or {})

    def _repr_html_(self) -> str:
        return self.figure()._repr_html_()

    @property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.nodes.site, self.nodes.position, self.nodes.feature

    def _find(self, name: str) -> np.ndarray:
        names = self.names
        found = [i for i, one in enumerate(names) if name in (one, one.rpartition("@")[0])]
        if not found:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
            raise SaescopeError(
                f"None of the {len(names)} nodes of circuit {self.name} is called {name!r}; closest: {', '.join(near)}."
            )
        return np.array(found, dtype=np.int64)

    def _node_rows(self) -> list[dict[str, Any]]:
        numbers = {name: _plain(getattr(self, name)) for name in _BY_NODE}
        return [
            {"node": self.node_name(i), "site": self.sites[site].name,
             "position": None if position == ANYWHERE else position, "kind": KINDS.get(feature, "feature"),
             "feature": feature if feature >= 0 else None,
             **{name: column[i] for name, column in numbers.items()}}
            for i, (site, position, feature) in enumerate(self.nodes.triples)
        ]

    def _edge_rows(self) -> list[dict[str, Any]]:
        columns = [_plain(getattr(self, name)) for name in _BY_EDGE]
        ends = zip(self.source.tolist(), self.target.tolist(), strict=True)
        return [
            {"source": self.node_name(source), "target": self.node_name(target),
             **dict(zip(("weight", "low", "high", "inclusion"), (column[i] for column in columns), strict=True))}
            for i, (source, target) in enumerate(ends)
        ]


def name_of(sites: Sequence[SiteInfo], site: int, position: int, feature: int) -> str:
    """The name of a node; see `Circuit.node_name`."""
    what = KINDS.get(feature, f"f{feature}")
    return f"{sites[site].name}/{what}" + ("" if position == ANYWHERE else f"@{position}")


def site_names(sites: Sequence[Site]) -> list[str]:
    """Short names by block and kind: `resid-9`, `attn-12`, `mlp-0`; full hook names where short ones would clash."""
    short = [_short(site) for site in sites]
    return [
        name if short.count(name) == 1 else ">".join(site.hooks) for name, site in zip(short, sites, strict=True)
    ]


def layer_of(site: Site) -> int | None:
    """Block of a site's output; None if it isn't in a block."""
    block = re.match(r"blocks\.(\d+)\.", site.output)
    return int(block[1]) if block else None


def _short(site: Site) -> str:
    layer, hook = layer_of(site), site.output.rpartition("hook_")[2]
    kinds = {"resid_post": "resid", "attn_out": "attn", "mlp_out": "mlp"}
    name = "update" if site.update else kinds.get(hook, hook.replace("_", "-"))
    return name if layer is None else f"{name}-{layer}"


def _plain(numbers: Float64[np.ndarray, " n"]) -> list[float | None]:
    return [None if number != number else number for number in numbers.tolist()]
