"""A model whose circuit is known: its dictionaries, its task, and the true nodes and edges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from analysis.circuits.effects.moves import Entries, moves_of, node_effects_of
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import OUTPUT, NodeEffects
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.task import Pair, Task
from analysis.circuits.tasks.tokens import one_length
from sae.base import SAE
from training.model.language_model import Model
from training.site import Site

Node = tuple[int, int, int]
"""Site, position, feature."""
Edge = tuple[Node, Node | int]
"""Source and target; target OUTPUT is the metric."""
Named = tuple[str, int, str]
"""A node by name: hook without `blocks.` and `hook_`, such as `0.attn_out`; position; feature name."""
NamedEdge = tuple[Named, Named | None]
"""An edge by names; target None is the metric."""
ROUNDING = 1e-9
"""Differences below this share of the largest number count as rounding."""


@dataclass(frozen=True)
class Known:
    """A model and its known circuit.

    Attributes:
        name: name of the model.
        circuit: the model with its dictionaries.
        task: its task.
        examples: the task's training pairs as tokens.
        nodes: for each example, the features the answer depends on.
        edges: direct edges the answer depends on in some example; None if unknown.
        indirect: pairs of nodes that act on each other only through other nodes, so not edges.
        linear: whether the metric is linear in every node, so that every estimator is exact.
    """

    name: str
    circuit: CircuitModel
    task: Task
    examples: Examples
    nodes: tuple[frozenset[Node], ...]
    edges: frozenset[Edge] | None = None
    indirect: frozenset[Edge] = frozenset()
    linear: bool = False


class Names:
    """Looks up nodes by name, in a model whose dictionaries share one list of feature names."""

    def __init__(self, model: Model, saes: Mapping[str, SAE], names: Sequence[str]) -> None:
        """`saes` are keyed by hook without `blocks.` and `hook_`."""
        sites = {short: Site(input=_hook(short)) for short in saes}
        self.circuit = CircuitModel(model, {sites[short]: sae for short, sae in saes.items()})
        self.site = {short: self.circuit.index[site] for short, site in sites.items()}
        self.feature = {name: i for i, name in enumerate(names)}

    def node(self, named: Named) -> Node:
        """The node with this name."""
        hook, position, name = named
        return self.site[hook], position, self.feature[name]

    def edge(self, named: NamedEdge) -> Edge:
        """The edge between two names."""
        source, target = named
        return self.node(source), OUTPUT if target is None else self.node(target)

    def known(
        self, task: Task, nodes: Callable[[Pair], Iterable[Named]], edges: Callable[[Pair], Iterable[NamedEdge]],
        indirect: Callable[[Pair], Iterable[NamedEdge]], *, linear: bool = False,
    ) -> Known:
        """Build a `Known` from functions that give each pair's true nodes and edges."""
        found, not_edges = ({self.edge(edge) for pair in task.train for edge in which(pair)} for which in (edges, indirect))
        assert not found & not_edges
        return Known(
            task.name, self.circuit, task, one_length(task.train, self.circuit.model),
            tuple(frozenset(map(self.node, nodes(pair))) for pair in task.train), frozenset(found), frozenset(not_edges),
            linear,
        )


def moving_features(circuit: CircuitModel, examples: Examples) -> NodeEffects:
    """Effects of 1 for every feature that differs between an example's two prompts, beyond rounding."""
    assert examples.corrupt is not None
    clean, corrupt = (circuit.states(tokens, examples.keep)[0] for tokens in (examples.clean, examples.corrupt))
    entries = []
    for index, site in enumerate(circuit.sites):
        found = moves_of(circuit, site, clean[site], corrupt[site])
        by = found.features.value.abs()
        which = (by > ROUNDING * by.max()).nonzero().squeeze(1)
        entries.append(Entries.of(index, examples, 0, found.row[which], found.feature[which], by.new_ones(len(which))))
    return node_effects_of(entries, len(examples))


def _hook(short: str) -> str:
    layer, _, name = short.partition(".")
    return f"blocks.{layer}.hook_{name}"


def chain(*links: Sequence[Named]) -> list[NamedEdge]:
    """Edges from every node of each group to every node of the next, and from the last into the metric."""
    edges: list[NamedEdge] = [(a, b) for one, other in pairwise(links) for a in one for b in other]
    return edges + [(a, None) for a in links[-1]]
