"""Choose a circuit by node effects within the circuit, rather than in the full model.

Effects at the clean run measure what the model loses when one node is patched and everything else stays, backups and
redundant nodes included. In a small circuit nearly everything is at its reference, and nodes that oppose the answer may be
gone. So pruning goes from many nodes to few in rounds, and recomputes effects within the remaining circuit. It only sees
training examples; measure the gain on held-out ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from analysis.circuits.checks.ablation import PLAIN, Ablation, Errors, Shares, ablated, measure, shares_of
from analysis.circuits.effects.gradients import differentiable
from analysis.circuits.effects.moves import Entries, moves_of, node_effects_of
from analysis.circuits.effects.reference import Means, Reference, position_of_rows, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric
from sae.code import from_pairs
from training.model.splice import Reconstruct
from training.site import Site, SiteRows


def effects_within(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, run: Ablation, *,
    nodes: Nodes | None = None, reference: Reference = "mean", means: Means | None = None, batch: int = 32,
) -> NodeEffects:
    """Attribution patching in an ablated run: first-order effect of patching each node to its reference.

    The gradient is taken at the ablated run and flows through the circuit alone, so a node only acts through later nodes
    that are kept. An effect is minus the derivative of the metric with respect to the node's share, also for nodes that
    are patched in this run.

    Args:
        model: the model with its SAEs.
        groups: examples.
        metric: differentiable metric.
        run: the ablation.
        nodes: nodes to compute effects of, always by position; None for all.
        reference: what nodes are patched to.
        means: mean states, for the reference `mean`.
        batch: examples per forward pass.

    Raises:
        SaescopeError: the metric has no gradient.
    """
    entries, first = [], 0
    for part in (part for group in groups for part in group.batches(batch)):
        states = reference_states(model, part, reference, means)
        found, slopes = _slopes(model, part, metric, shares_of(model, run, part.n_ctx), states)
        wanted = shares_of(model, PLAIN if nodes is None else Ablation(nodes), part.n_ctx)
        for i, site in enumerate(model.sites):
            chosen = wanted[site][position_of_rows(part)] != 0
            moves = moves_of(model, site, *(_only(state, chosen) for state in (found[site], states[site])))
            mine = chosen[moves.row, moves.feature]
            effects = moves.effects(slopes[site])
            entries.append(Entries.of(i, part, first, moves.row[mine], moves.feature[mine], effects[mine]))
        first += len(part)
    return node_effects_of(entries, first)


def _only(state: State, chosen: Bool[Tensor, "n_rows d"]) -> State:
    """A state restricted to the requested features."""
    code, rows = state.code, state.code.rows()
    mine = chosen[rows, code.feature.long()]
    return replace(state, code=from_pairs(rows[mine], code.feature[mine], code.value[mine], code.n_rows, code.d_sae))


def _slopes(
    model: CircuitModel, examples: Examples, metric: Metric, shares: Shares, states: dict[Site, State]
) -> tuple[dict[Site, State], dict[Site, Tensor]]:
    """State of every site in an ablated run, before its own ablation, and the metric's gradient at its target."""
    ablation = ablated(model, examples, shares, states)
    found: dict[Site, State] = {}
    leaves: dict[Site, Tensor] = {}

    def at(site: Site) -> Reconstruct:
        def put(rows: SiteRows, mask: Tensor) -> Tensor:
            with torch.no_grad():
                found[site] = model.state(site, rows)
            new = ablation[site](rows, mask) if site in ablation else rows.target
            leaf = leaves[site] = torch.zeros_like(new, requires_grad=True)
            return new + leaf

        return put

    with torch.enable_grad():
        logits = model.run(examples.clean, examples.keep, {site: at(site) for site in model.sites})
        total = differentiable(metric, logits, examples).sum()
        # the gradient is zero where no later kept node reads a site
        slopes = torch.autograd.grad(total, [leaves[site] for site in model.sites], materialize_grads=True)
    return found, dict(zip(model.sites, slopes, strict=True))


def pruned(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, sizes: Sequence[int], *, start: Nodes,
    by: Literal["distance", "size"] = "distance", errors: Errors = "circuit", shrink: float = 0.8,
    progress: Callable[[int], None] = lambda _: None, **options: Any,
) -> list[Nodes]:
    """Nested circuits of these sizes, by dropping nodes from `start` by their effects within the remaining circuit.

    Each round drops nodes by their effect, per example, within the remaining circuit C:

        distance    drop those whose loss keeps C closest to the model, in Σ_i (m_i(C) − m_i(M))² over examples, to first
                    order; greedily, accounting for nodes dropped before, so that nodes that cancel go together
        size        drop those with the smallest |mean effect|

    Args:
        model: the model with its SAEs.
        groups: training examples.
        metric: differentiable metric.
        sizes: circuit sizes, ascending.
        start: initial nodes, several times as many as in the largest circuit; all by position, or all ANYWHERE.
        by: criterion for dropping nodes.
        errors: as in `Ablation`.
        shrink: share of the nodes kept per round.
        progress: called with the number of nodes dropped in each round.
        options: options of `effects_within`.

    Raises:
        SaescopeError: the metric has no gradient.
    """
    groups, left, found = list(groups), start, []
    (full,) = measure(model, groups, metric, [PLAIN], **options)
    for size in sorted({min(size, len(start)) for size in sizes}, reverse=True):
        while len(left) > size:
            run = Ablation(left, errors=errors)
            effects = effects_within(model, groups, metric, run, nodes=left, **options)
            effects = effects.over_positions() if (left.position == ANYWHERE).all() else effects
            table = _table(effects, left)
            n = max(size, int(shrink * len(left)))
            if by == "size":
                kept = np.argsort(-np.abs(table.mean(axis=0)), kind="stable")[:n]
            else:
                (mine,) = measure(model, groups, metric, [run], **options)
                kept = nearest(table, mine - full, n)
            progress(len(left) - len(kept))
            left = left.take(np.sort(kept))
        found.append(left)
    return found[::-1]


def _table(effects: NodeEffects, nodes: Nodes) -> Float64[np.ndarray, "n_examples n_nodes"]:
    """Effects of these nodes as a dense table; 0 for nodes without an effect."""
    place = {triple: i for i, triple in enumerate(nodes.triples)}
    table = np.zeros((effects.values.shape[0], len(nodes)))
    table[:, [place[triple] for triple in effects.nodes.triples]] = effects.values.toarray()
    return table


def nearest(
    effects: Float64[np.ndarray, "n_examples n_nodes"], off: Float64[np.ndarray, " n_examples"], n: int
) -> Int64[np.ndarray, " n"]:
    """Greedily drop nodes one by one, each time the one that leaves Σ_i off_i² smallest, until n are left.

    Args:
        effects: change of `off` when a node is dropped.
        off: deviation of each example's metric from the full model's.
        n: nodes to keep.
    """
    left, squares, off = np.arange(effects.shape[1]), np.square(effects).sum(axis=0), off.copy()
    while len(left) > n:
        least = int(np.argmin(squares[left] + 2 * off @ effects[:, left]))
        off += effects[:, left[least]]
        left = np.delete(left, least)
    return left
