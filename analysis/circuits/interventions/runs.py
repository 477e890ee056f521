"""Runs that record the watched nodes: clean, with interventions, and differentiated along the interventions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.interventions.moves import Moves, at
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from sae.code import SparseCode
from sae.errors import SaescopeError
from training.model.splice import Forward, Reconstruct
from training.site import Site, SiteRows


@dataclass(frozen=True)
class Found:
    """Results of a run: logits, states of the intervened sites, and the watched nodes' values."""

    logits: Float[Tensor, "n_examples n_logits d_vocab"]
    values: Float[Tensor, "n_examples n_nodes"]
    states: dict[Site, State]


class Runs:
    """Runs of the examples that record the watched nodes."""

    def __init__(self, model: CircuitModel, examples: Examples, nodes: Nodes, forward: Forward | None) -> None:
        self.model, self.examples, self.nodes, self.forward = model, examples, nodes, forward
        self.example, self.position = examples.keep.nonzero().T

    @torch.no_grad()
    def clean(self) -> Found:
        """Run without interventions."""
        return self._run(self.model.sites, lambda _, state: (state, None))

    @torch.no_grad()
    def intervened(self, moves: Moves) -> Found:
        """Run with all interventions."""
        return self._run(moves.by_site, lambda site, state: (moves.apply(site, state), None))

    def slopes(
        self, moves: Moves, clean: Found, metric: Metric | None
    ) -> tuple[Float[Tensor, " n_examples"], Float[Tensor, "n_examples n_nodes"]]:
        """Directional derivatives of metric and values along all moves at once, at the clean run.

        All sites are moved by a fraction t, one t per example. The derivatives of the values are ∂/∂u of ∂(Σ u·value)/∂t,
        which is linear in u: two backward passes for any number of watched nodes.
        """
        t = torch.zeros(len(self.examples), dtype=torch.float64, requires_grad=True)
        moved = {site: moves.apply(site, clean.states[site]) for site in moves.by_site}

        def part_of_the_way(site: Site, state: State) -> tuple[State, Tensor]:
            old, new, step = clean.states[site], moved[site], t[self.example].to(state.target)[:, None]
            there = State(
                state.target + step * (new.target - old.target), state.code,
                state.offset + step * (new.offset - old.offset), state.error + step * (new.error - old.error),
            )
            return there, t[:, None] * (self._features(site, new.code) - self._features(site, old.code))

        run = self._run(moves.by_site, part_of_the_way)
        of_metric, of_values = torch.zeros_like(t), torch.zeros_like(run.values)
        if metric is not None and run.logits.requires_grad:
            m = value(metric, run.logits, self.examples)
            if not m.requires_grad:
                raise SaescopeError("The metric has no gradient in the logits, so its change can't be predicted.")
            of_metric = _grad(m.sum(), t, retain_graph=True)
        if run.values.requires_grad:
            weight = torch.ones_like(run.values, requires_grad=True)
            of_values = _grad(_grad((run.values * weight).sum(), t, create_graph=True).sum(), weight)
        return of_metric.detach(), of_values.detach()

    def _run(
        self, changed: Iterable[Site], change: Callable[[Site, State], tuple[State, Tensor | None]]
    ) -> Found:
        """Run with changed states at some sites; `change` may also add to the values of a site's watched features."""
        changed, watched = set(changed), {self.model.sites[i] for i in self.nodes.site.tolist()}
        states: dict[Site, State] = {}
        values: list[Tensor] = []

        def look(site: Site) -> Reconstruct:
            def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                state = states[site] = self.model.state(site, rows)
                new, more = change(site, state) if site in changed else (state, None)
                found = self._features(site, new.code) + self._norms(site, new)
                values.append(found if more is None else found + more)
                return new.target if new is not state else rows.target

            return put

        sites = {site: look(site) for site in self.model.sites if site in changed | watched}
        logits = self.model.run(self.examples.clean, self.examples.keep, sites, self.forward)
        none = torch.zeros(len(self.examples), len(self.nodes), dtype=torch.float64)
        return Found(logits, sum(values, none), states)

    def _mine(self, site: Site) -> list[tuple[int, int, int]]:
        """(column, position, feature) of the watched nodes at a site."""
        at = self.model.index[site]
        return [(i, position, feature) for i, (s, position, feature) in enumerate(self.nodes.triples) if s == at]

    def _features(self, site: Site, code: SparseCode) -> Float[Tensor, "n_examples n_nodes"]:
        """Values of the watched features at a site; 0 in the columns of other nodes."""
        columns, row = [], code.rows()
        out = torch.zeros(len(self.nodes), len(self.examples), dtype=torch.float64)
        for i, position, feature in self._mine(site):
            entries = ((code.feature == feature) & at(self.position, position)[row]).nonzero()[:, 0]
            columns.append((i, self.example[row[entries]], code.value[entries].double()))
        for i, example, numbers in columns:
            out = out.index_put((torch.full_like(example, i), example), numbers, accumulate=True)
        return out.T

    def _norms(self, site: Site, state: State) -> Float[Tensor, "n_examples n_nodes"]:
        """Norms of the watched errors and skip paths at a site; 0 in the columns of other nodes."""
        out = torch.zeros(len(self.nodes), len(self.examples), dtype=torch.float64)
        for i, position, feature in self._mine(site):
            if feature in (ERROR, SKIP):
                vector = state.error if feature == ERROR else state.offset - self.model.saes[site].bias()
                rows = at(self.position, position).nonzero()[:, 0]
                out = out.index_put((torch.full_like(rows, i), self.example[rows]), _norm(vector[rows]), accumulate=True)
        return out.T


def _norm(vectors: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Norms whose derivatives of any order are 0 at the zero vector."""
    squares = vectors.double().square().sum(1)
    some = squares.detach() > 0
    return torch.where(some, torch.where(some, squares, 1).sqrt(), 0)


def _grad(of: Tensor, to: Tensor, *, retain_graph: bool = False, create_graph: bool = False) -> Tensor:
    """The gradient; zeros where `of` doesn't depend on `to`."""
    if not of.requires_grad:
        return torch.zeros_like(to)
    (found,) = torch.autograd.grad(
        of, to, retain_graph=retain_graph or create_graph, create_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(to) if found is None else found
