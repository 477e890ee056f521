"""Choosing a circuit by what its nodes do among themselves, rather than by what each does in the whole model.

Effects at the clean run say what the model loses when a node goes and everything else stays, makes up for it, or passes on
the same information beside it. A small circuit is another place: nearly all is at its reference there. So

    joint     every node of every site goes from its reference to its own value together, and each gets its part of the way:
              Σ over all nodes of all sites = m(∅) − m(M), at whatever size (integrated gradients over shares; Aumann &
              Shapley's value of the nodes). A site that others hide or repeat does not count twice.
    pruned    from many nodes to few: in turns, effects are taken within the circuit that is left, and the smallest go

Both see training examples only; what they gain is measured on others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64
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
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, shares: Callable[[int], Shares], *,
    nodes: Nodes | None = None, reference: Reference = "mean", means: Means | None = None, batch: int = 32,
) -> NodeEffects:
    """Attribution patching in an ablated run: what each node's whole move to its reference would do there, to first order.

    The slope is taken where the run is, and passes through the circuit alone: a node acts by what the nodes behind it are
    still there to read. Effects are minus the derivative of the metric with respect to the node's share.

    Args:
        model: the model with its SAEs.
        groups: examples.
        metric: differentiable.
        shares: of the run, for prompts of this many tokens.
        nodes: whose effects are wanted, by position in any case; None for all.
        reference: what nodes are moved to.
        means: what `mean` is read from.
        batch: examples at a time.

    Raises:
        SaescopeError: a metric without a gradient.
    """
    entries, n_examples = _entries(model, groups, metric, shares, nodes, reference, means, batch)
    return node_effects_of(entries, n_examples)


def _entries(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, shares: Callable[[int], Shares],
    nodes: Nodes | None, reference: Reference, means: Means | None, batch: int,
) -> tuple[list[Entries], int]:
    """Effects entry by entry, and how many examples there are."""
    entries, first = [], 0
    for part in (part for group in groups for part in group.batches(batch)):
        states = reference_states(model, part, reference, means)
        found, slopes = _slopes(model, part, metric, shares(part.n_ctx), states)
        wanted = shares_of(model, PLAIN if nodes is None else Ablation(nodes), part.n_ctx)
        for i, site in enumerate(model.sites):
            chosen = wanted[site][position_of_rows(part)] != 0
            moves = moves_of(model, site, *(_only(state, chosen) for state in (found[site], states[site])))
            mine = chosen[moves.row, moves.feature]
            effects = moves.effects(slopes[site])
            entries.append(Entries.of(i, part, first, moves.row[mine], moves.feature[mine], effects[mine]))
        first += len(part)
    return entries, first


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


def joint_effects(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, *, nodes: Nodes | None = None, n_steps: int = 10,
    reference: Reference = "mean", means: Means | None = None, batch: int = 32,
) -> NodeEffects:
    """Effects along the way on which all nodes go together: the mean within runs of equal shares, at midpoints.

    Args:
        model: the model with its SAEs.
        groups: training examples.
        metric: differentiable.
        nodes: whose effects are wanted; all go.
        n_steps: runs, each forward and backward.
        reference: what nodes come from.
        means: what `mean` is read from.
        batch: examples at a time.

    Raises:
        SaescopeError: a metric without a gradient.
    """
    groups, entries, n_examples = list(groups), [], 0
    for i in range(n_steps):
        even = partial(_even, model, (i + 0.5) / n_steps)
        found, n_examples = _entries(model, groups, metric, even, nodes, reference, means, batch)
        entries += [replace(one, value=one.value / n_steps) for one in found]
    return node_effects_of(entries, n_examples)


def _even(model: CircuitModel, share: float, n_ctx: int) -> Shares:
    return {site: torch.full_like(table, share) for site, table in shares_of(model, PLAIN, n_ctx).items()}


def pruned(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, sizes: Sequence[int], *, start: Nodes,
    by: Literal["distance", "size"] = "distance", errors: Errors = "circuit", shrink: float = 0.8, **options: Any,
) -> list[Nodes]:
    """Circuits of these sizes, each inside the next, by dropping nodes from `start` by their effects within what is left.

    With e_i a node's effect in example i and r_i = m_i(C) − m_i(M) what the circuit is off by, those nodes go first whose

        distance    mean of (r_i + e_i)² − r_i² is least: without them the circuit is nearest to the model, example by
                    example, to first order; while a circuit falls short that keeps what supports the answer
        size        |mean of e_i| is least

    Args:
        model: the model with its SAEs.
        groups: training examples.
        metric: differentiable.
        sizes: of the circuits, ascending.
        start: the nodes to begin with, several times as many as the largest circuit has; all by position, or all anywhere.
        by: what is dropped.
        errors: as in `Ablation`.
        shrink: the share of the nodes that is left after a turn.
        options: of `effects_within`.

    Raises:
        SaescopeError: a metric without a gradient.
    """
    groups, left, found = list(groups), start, []
    (full,) = measure(model, groups, metric, [PLAIN], **options)
    for size in sorted({min(size, len(start)) for size in sizes}, reverse=True):
        while len(left) > size:
            run = Ablation(left, errors=errors)
            effects = effects_within(model, groups, metric, partial(shares_of, model, run), nodes=left, **options)
            effects = effects.over_positions() if (left.position == ANYWHERE).all() else effects
            worth = np.abs(effects.mean)
            if by == "distance":
                (mine,) = measure(model, groups, metric, [run], **options)
                worth = gained(effects, mine - full)
            left = _first(effects.nodes, worth, left, max(size, int(shrink * len(left))))
        found.append(left)
    return found[::-1]


def gained(effects: NodeEffects, off: Float64[np.ndarray, " n_examples"]) -> Float64[np.ndarray, " n_nodes"]:
    """How much further from the model a circuit is without each node: mean of (off + e)² − off²."""
    e = effects.values
    return np.asarray((e.multiply(e) + e.multiply(2 * off[:, None])).sum(axis=0)).ravel() / len(off)


def _first(found: Nodes, worth: Float64[np.ndarray, " n_found"], among: Nodes, n: int) -> Nodes:
    """The n nodes of most worth; those that were not found are worth nothing."""
    by_node = dict(zip(found.triples, worth, strict=True))
    order = np.argsort([-by_node.get(triple, 0.0) for triple in among.triples], kind="stable")
    return among.take(np.sort(order[:n]))
