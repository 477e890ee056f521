"""Exact node effects: patch every node in turn to its reference. Estimators are compared with these.

    effect = metric(node = reference) − metric(clean)        (Marks et al. 2403.19647, eq. 2)

Everything else at the node's site is kept, including errors; everything downstream is recomputed.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.circuits.effects.moves import Entries, Moves, moves_of, node_effects_of, node_keys
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.effects.repeats import Repeats
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.site import Site, SiteRows


@torch.no_grad()
def exact_effects(
    model: CircuitModel, examples: Examples, metric: Metric, *, reference: Reference = "counterfactual",
    means: Means | None = None, nodes: Nodes | None = None, batch: int = 32, freeze: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> NodeEffects:
    """Node effects by ablation: one run for each node and example whose value changes.

    Args:
        reference: what nodes are patched to.
        means: mean states, for the reference `mean`.
        nodes: nodes to ablate; None is all. A node that isn't active in an example has effect 0 there.
        batch: prompts per forward pass.
        freeze: parts frozen at the clean run, as in `SplicedModel.run`; None freezes nothing.
        progress: called with the number of newly finished (site, example) passes.

    Raises:
        SaescopeError: the examples are single prompts, without a counterfactual.
    """
    assert nodes is None or bool((nodes.position >= 0).all()), "nodes at positions"
    entries, first = [], 0
    for part in examples.batches(batch):
        clean, _ = model.states(part.clean, part.keep)
        to = reference_states(model, part, reference, means)
        runs = Repeats(model, part, max(1, batch // len(part)), freeze)
        for index, site in enumerate(model.sites):
            moves = moves_of(model, site, clean[site], to[site])
            chosen = _chosen(moves, index, part, first, nodes)
            moving = chosen & moves.nonzero
            changes = torch.zeros(len(moving), dtype=torch.float64)
            changes[moving] = _changes(runs, site, metric, moves, moving.nonzero().squeeze(1), part)
            entries.append(Entries.of(index, part, first, moves.row[chosen], moves.feature[chosen], changes[chosen]))
            if progress:
                progress(len(part))
        first += len(part)
    return node_effects_of(entries, len(examples), nodes)


def _chosen(moves: Moves, site: int, part: Examples, first: int, nodes: Nodes | None) -> Tensor:
    """Mask of the moves that belong to the requested nodes."""
    if nodes is None:
        return torch.ones_like(moves.nonzero)
    keys = Entries.of(site, part, first, moves.row, moves.feature, torch.zeros(len(moves.row))).key
    return torch.from_numpy(np.isin(keys, node_keys(nodes.site, nodes.position, nodes.feature)))


def _changes(
    runs: Repeats, site: Site, metric: Metric, moves: Moves, which: Int64[Tensor, " n"], part: Examples
) -> Float[Tensor, " n"]:
    """Change of the example's metric by each of these moves alone, fp64.

    Each example's moves are distributed over its repeats, so that every run has the same prompts.
    """
    example = part.keep.nonzero()[:, 0][moves.row[which]]
    # moves are not sorted by example: number them within each example
    order = torch.argsort(example, stable=True)
    counts = torch.bincount(example, minlength=len(part))
    number = torch.empty_like(example)
    number[order] = torch.arange(len(example)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    changes = torch.zeros(len(which), dtype=torch.float64)
    n_rows = int(part.keep.sum())
    with runs.at(site):
        clean = value(metric, runs.logits({}), runs.examples).double()
        for start in range(0, int(counts.max()), runs.n):
            mine = ((number >= start) & (number < start + runs.n)).nonzero().squeeze(1)
            copy = number[mine] - start
            shift = copy * n_rows + moves.row[which[mine]], moves.steps(which[mine])
            moved = value(metric, runs.logits({site: _shifted(*shift)}), runs.examples).double()
            changes[mine] = (moved - clean)[copy * len(part) + example[mine]].cpu()
    return changes


def _shifted(row: Int64[Tensor, " n"], step: Float[Tensor, "n d_out"]) -> Callable[[SiteRows, Tensor], Tensor]:
    def shift(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
        return rows.target.index_add(0, row.to(rows.target.device), step.to(rows.target))

    return shift
