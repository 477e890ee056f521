"""Choosing a circuit by what its nodes do among themselves, rather than by what each does in the whole model.

Effects at the clean run say what the model loses when one node goes and everything else stays, repeats it or makes up for
it. A small circuit is another place: nearly all is at its reference there, and nodes that oppose the answer may be missing.
So pruning goes from many nodes to few in turns, and takes effects anew within the circuit that is left. It sees training
examples only; what it gains is to be measured on others.
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
    """Attribution patching in an ablated run: what each node's whole move to its reference would do there, to first order.

    The slope is taken where the run is, and passes through the circuit alone: a node acts by what the nodes behind it are
    still there to read. Effects are minus the derivative of the metric with respect to the node's share, of nodes that are
    moved in this run too.

    Args:
        model: the model with its SAEs.
        groups: examples.
        metric: differentiable.
        run: the ablation.
        nodes: whose effects are wanted, by position in any case; None for all.
        reference: what nodes are moved to.
        means: what `mean` is read from.
        batch: examples at a time.

    Raises:
        SaescopeError: a metric without a gradient.
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
    """A state without the features that are not asked for."""
    code, rows = state.code, state.code.rows()
    mine = chosen[rows, code.feature.long()]
    return replace(state, code=from_pairs(rows[mine], code.feature[mine], code.value[mine], code.n_rows, code.d_sae))


def _slopes(
    model: CircuitModel, examples: Examples, metric: Metric, shares: Shares, states: dict[Site, State]
) -> tuple[dict[Site, State], dict[Site, Tensor]]:
    """Every site of an ablated run taken apart as it arrives, and the gradient of the metric with respect to its target."""
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
        # no gradient where nothing that is left behind a site reads it
        slopes = torch.autograd.grad(total, [leaves[site] for site in model.sites], materialize_grads=True)
    return found, dict(zip(model.sites, slopes, strict=True))


def pruned(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, sizes: Sequence[int], *, start: Nodes,
    by: Literal["distance", "size"] = "distance", errors: Errors = "circuit", shrink: float = 0.8,
    progress: Callable[[int], None] = lambda _: None, **options: Any,
) -> list[Nodes]:
    """Circuits of these sizes, each inside the next, by dropping nodes from `start` by their effects within what is left.

    Which nodes go in a turn, by what each does in each example within the circuit C that is left:

        distance    those without which C stays nearest to the model, by Σ_i (m_i(C) − m_i(M))² over examples, to first
                    order; one after the other, each counting in what has gone, so that nodes that cancel go together
        size        those with the smallest |mean effect|

    Args:
        model: the model with its SAEs.
        groups: training examples.
        metric: differentiable.
        sizes: of the circuits, ascending.
        start: the nodes to begin with, several times as many as the largest circuit has; all by position, or all anywhere.
        by: what is dropped.
        errors: as in `Ablation`.
        shrink: the share of the nodes that is left after a turn.
        progress: told of the nodes dropped in each turn.
        options: of `effects_within`.

    Raises:
        SaescopeError: a metric without a gradient.
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
    """Effects of these nodes, 0 for those without."""
    place = {triple: i for i, triple in enumerate(nodes.triples)}
    table = np.zeros((effects.values.shape[0], len(nodes)))
    table[:, [place[triple] for triple in effects.nodes.triples]] = effects.values.toarray()
    return table


def nearest(
    effects: Float64[np.ndarray, "n_examples n_nodes"], off: Float64[np.ndarray, " n_examples"], n: int
) -> Int64[np.ndarray, " n"]:
    """The n nodes that are left when nodes go one by one, each the one without which Σ_i off_i² is least.

    Args:
        effects: what a node's going adds to `off`.
        off: how far each example is from where it should be.
        n: nodes to keep.
    """
    left, squares, off = np.arange(effects.shape[1]), np.square(effects).sum(axis=0), off.copy()
    while len(left) > n:
        least = int(np.argmin(squares[left] + 2 * off @ effects[:, left]))
        off += effects[:, left[least]]
        left = np.delete(left, least)
    return left
