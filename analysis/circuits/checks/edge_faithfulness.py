"""Faithfulness of a circuit's edges alone: how much of a behaviour flows through them, node by node.

    value of node d = its value in a run in which every earlier site's target is
                      reference + Σ over parents u of d   (value_u − reference_u) · W_u
    m(C)            = the metric of such a run with the parents of OUTPUT

So a node depends on its parents only, and they on theirs. A circuit with every possible edge between its nodes scores the
same as its nodes do (`faithfulness`); m(∅), m(M) and the reference are the same. Nodes without a path to OUTPUT change
nothing. A node without parents stays at its reference, with no information about the prompt, unless it is at the first
site.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor

from analysis.circuits.checks import bootstrap
from analysis.circuits.checks.ablation import NOTHING_KEPT, PLAIN, Errors, measure
from analysis.circuits.checks.curve import area
from analysis.circuits.checks.faithfulness import Faithfulness
from analysis.circuits.effects.paths import Reach, reach
from analysis.circuits.effects.placed import Steps, place
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, EdgeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from sae.metrics import Interval
from training.model.splice import Reconstruct
from training.site import Site, SiteRows


@dataclass(frozen=True)
class EdgeCurve:
    """Faithfulness against the number of edges.

    Attributes:
        name: name in a legend.
        n_edges: edges of each circuit, ascending.
        n_nodes: nodes of each circuit with a path to OUTPUT.
        values: faithfulness.
        area: area over log n_edges.
    """

    name: str
    n_edges: tuple[int, ...]
    n_nodes: tuple[int, ...]
    values: tuple[Interval, ...]
    area: Interval

    def plain(self) -> dict[str, Any]:
        """The result in JSON types."""
        return {
            "name": self.name, "n_edges": list(self.n_edges), "n_nodes": list(self.n_nodes),
            "values": [value.named("value") for value in self.values], **self.area.named("area"),
        }


def edge_curve(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, edges: EdgeEffects, sizes: Sequence[int], *,
    name: str = "edges", errors: Errors = "circuit", n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0,
    **options: Any,
) -> EdgeCurve:
    """Faithfulness of the circuits of the edges with the largest |mean effect|.

    Args:
        model: the model with its SAEs.
        groups: held-out examples.
        metric: metric on the last position's logits.
        edges: all edges that may be chosen.
        sizes: edges of each circuit; fewer if there aren't enough.
        name: name in a legend.
        errors: how errors are treated, see `edge_faithfulness`.
        n_bootstraps: bootstrap draws per interval.
        seed: seed of the draws.
        options: options of `edge_faithfulness`: reference, means, batch.

    Raises:
        SaescopeError: as `edge_faithfulness`.
    """
    circuits = [edges.largest(n) for n in sorted({min(n, len(edges)) for n in sizes})]
    found = edge_faithfulness(model, groups, metric, circuits, errors=errors, **options)
    n_edges = tuple(len(circuit) for circuit in circuits)
    columns = np.stack([*(one.run - one.empty for one in found), found[0].full - found[0].empty], axis=1)
    return EdgeCurve(
        name, n_edges, tuple(len(parents(circuit)) - 1 for circuit in circuits),
        tuple(one.interval(n_bootstraps=n_bootstraps, seed=seed) for one in found),
        bootstrap.interval(
            lambda means: area(n_edges, means[:, :-1] / means[:, -1:]), columns, n_bootstraps=n_bootstraps, seed=seed
        ),
    )


@torch.no_grad()
def edge_faithfulness(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, circuits: Sequence[EdgeEffects], *,
    errors: Errors = "circuit", reference: Reference = "mean", means: Means | None = None, batch: int = 32,
) -> list[Faithfulness]:
    """Faithfulness of the edges of each circuit; the values in `EdgeEffects` are ignored.

    Costs, per circuit and batch, one forward pass for each distinct set of parents, from the last site that separates all
    earlier ones from these nodes to the last node with these parents.

    Args:
        model: the model with its SAEs.
        groups: examples; each group has one length.
        metric: metric on the last position's logits.
        circuits: the edges of each circuit.
        errors: `circuit` treats errors as nodes like any other; `kept` adds every site's error with all its possible
            edges; `dropped` patches all errors to their reference.
        reference: what everything outside the circuit is patched to.
        means: mean states, for the reference `mean`.
        batch: examples per forward pass.

    Raises:
        SaescopeError: a node's position is beyond the prompts, or single prompts have no counterfactual.
    """
    groups = list(groups)
    empty, full = measure(model, groups, metric, [NOTHING_KEPT, PLAIN], reference=reference, means=means, batch=batch)
    columns = [np.zeros((len(circuits), 0))]
    for group in groups:
        reached = reach(model, group)
        for part in group.batches(batch):
            states = reference_states(model, part, reference, means)
            runs = [_Carried(model, part, states, circuit, errors, reached).metric(metric) for circuit in circuits]
            columns.append(np.array([run.double().cpu().numpy() for run in runs]).reshape(len(circuits), len(part)))
    return [Faithfulness(run, empty, full) for run in np.concatenate(columns, axis=1)]


def parents(edges: EdgeEffects) -> dict[int, frozenset[int]]:
    """Parents of OUTPUT and of every node with a path to it."""
    into: dict[int, set[int]] = {}
    for source, target in zip(edges.source.tolist(), edges.target.tolist(), strict=True):
        into.setdefault(target, set()).add(source)
    found: dict[int, frozenset[int]] = {}
    ahead = [OUTPUT]
    while ahead:
        target = ahead.pop()
        found[target] = frozenset(into.get(target, ()))
        ahead.extend(found[target] - found.keys() - set(ahead))
    return found


class _Read(Exception):
    """Stops a run once the last requested node is found."""


class _Carried:
    """Runs examples through a circuit's edges."""

    def __init__(
        self, model: CircuitModel, examples: Examples, reference: Mapping[Site, State], circuit: EdgeEffects,
        errors: Errors, reached: Reach,
    ) -> None:
        if errors != "circuit":
            circuit = _without_errors(circuit)
        if errors == "kept":
            circuit = _with_errors(circuit, len(model.sites), reached)
        self.model, self.examples, self.reference, self.reached = model, examples, reference, reached
        self.nodes, self.parents = circuit.nodes, parents(circuit)
        placed = place(model, circuit.nodes, examples.keep)
        self.placed = {site: mine for site, mine in placed.items() if len(mine)}
        self.steps = {
            site: Steps.between(model.saes[site], mine, reference[site], reference[site])
            for site, mine in self.placed.items()
        }

    def metric(self, metric: Metric) -> Float[Tensor, " n_examples"]:
        """m(C). Nodes with the same parents share a run, after their parents' runs."""
        by_parents: dict[frozenset[int], list[int]] = {}
        for node, mine in self.parents.items():
            by_parents.setdefault(mine, []).append(node)
        order = sorted(by_parents, key=lambda mine: max((self._site(u) for u in mine), default=-1))
        logits: list[Tensor] = []
        for first, group in groupby(order, key=lambda mine: self._first(by_parents[mine])):
            hooks = [hook for site in self.model.sites[first:] for hook in site.hooks]
            with self.model.model.replayed(hooks):
                logits += [run for mine in group if (run := self._run(mine, by_parents[mine], first)) is not None]
        (out,) = logits
        return value(metric, out, self.examples)

    def _site(self, node: int) -> int:
        return len(self.model.sites) if node == OUTPUT else int(self.nodes.site[node])

    def _first(self, members: Sequence[int]) -> int:
        """The last site that separates all earlier sites from these nodes."""
        before = range(min(map(self._site, members)))
        return max((site for site in before if self.reached.separates(site)), default=0)

    def _run(self, mine: frozenset[int], members: Sequence[int], first: int) -> Tensor | None:
        """Run with these parents and record the nodes' values; returns the logits if OUTPUT is among the nodes."""
        last = max(map(self._site, members))
        among, passing = self._mask(members), self._mask(mine)

        def restrict(site: Site) -> Reconstruct:
            def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                self._find(site, rows, among)
                if self.model.index[site] == last:
                    raise _Read
                return self._target(site, passing)

            return put

        at = {site: restrict(site) for site in self.model.sites[first : last + 1]}
        with suppress(_Read):
            return self.model.run(self.examples.clean, self.examples.keep, at)
        return None

    def _mask(self, nodes: Iterable[int]) -> Bool[Tensor, " n_nodes"]:
        mask = torch.zeros(len(self.nodes), dtype=torch.bool)
        mask[[node for node in nodes if node != OUTPUT]] = True
        return mask

    def _find(self, site: Site, rows: SiteRows, among: Bool[Tensor, " n_nodes"]) -> None:
        """Record this run's values of some nodes of a site."""
        if site in self.placed and among[self.steps[site].node].any():
            found = Steps.between(
                self.model.saes[site], self.placed[site], self.reference[site], self.model.state(site, rows)
            )
            self.steps[site] = self.steps[site].updated(found, among)

    def _target(self, site: Site, passing: Bool[Tensor, " n_nodes"]) -> Float[Tensor, "n_rows d_out"]:
        """The reference target plus the contributions of some nodes."""
        target = self.reference[site].target
        if site in self.placed and passing[self.steps[site].node].any():
            target = target + self.steps[site].added(passing)
        return target


def _without_errors(edges: EdgeEffects) -> EdgeEffects:
    """Remove error nodes and their edges."""
    other = np.append(edges.nodes.feature != ERROR, True)  # index −1 is OUTPUT
    now = np.append(np.cumsum(other[:-1]) - 1, OUTPUT)
    edges = edges.take(other[edges.source] & other[edges.target])
    return replace(edges, nodes=edges.nodes.take(other[:-1]), source=now[edges.source], target=now[edges.target])


def _with_errors(edges: EdgeEffects, n_sites: int, reached: Reach) -> EdgeEffects:
    """Add every site's error as a node, with all its possible edges, without values."""
    nodes = Nodes.of([*edges.nodes.triples, *((site, ANYWHERE, ERROR) for site in range(n_sites))])
    place = {triple: i for i, triple in enumerate(nodes.triples)}
    now = np.array([*(place[triple] for triple in edges.nodes.triples), OUTPUT])
    source, target = reached.edges(nodes)
    error = np.append(nodes.feature == ERROR, False)
    mine = error[source] | error[target]
    source, target = np.concatenate([now[edges.source], source[mine]]), np.concatenate([now[edges.target], target[mine]])
    return EdgeEffects(nodes, source, target, sparse.csr_array((edges.values.shape[0], len(source))))
