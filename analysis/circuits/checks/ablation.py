"""Runs of a model in which some nodes are moved to their reference: what every check of a circuit is made of.

At a row of a site, with v and v_ref a feature's value in this run and its reference, likewise error and offset:

    new target = Σ_{f kept} v · W_f + Σ_{f not kept} v_ref · W_f + (error or error_ref) + (offset or offset_ref)

v, error and offset are computed from what arrives in this very run, which earlier sites have changed. Where everything is
kept that is the model, where nothing is it is the reference. Rows outside the keep-mask pass unchanged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from analysis.circuits.effects.reference import Means, Reference, position_of_rows, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from sae.code import SparseCode, from_pairs
from sae.errors import SaescopeError
from training.model.splice import Reconstruct
from training.site import Site, SiteRows

Errors = Literal["circuit", "kept", "dropped"]
"""What becomes of errors: each treated as the node that it is, or all of them kept as found, or none ever kept."""


@dataclass(frozen=True)
class Ablation:
    """Which nodes a run moves to their reference.

    Attributes:
        nodes: a circuit; a node ANYWHERE stands for all positions.
        moved: the nodes outside it (faithfulness), or those in it (completeness).
        errors: `circuit` takes an error for a node like any other; `kept` moves none of them, `dropped` all.
    """

    nodes: Nodes
    moved: Literal["outside", "inside"] = "outside"
    errors: Errors = "circuit"


NOTHING_KEPT = Ablation(Nodes.empty())
"""All nodes are moved: m(∅)."""
PLAIN = Ablation(Nodes.empty(), "inside")
"""No node is moved: the model as it is, m(M)."""
ALL_FEATURES = Ablation(Nodes.empty(), "inside", "dropped")
"""The model with every SAE spliced in: all features and skip paths are kept, and no error."""


@torch.no_grad()
def measure(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, ablations: Sequence[Ablation], *,
    reference: Reference = "mean", means: Means | None = None, batch: int = 32,
) -> Float64[np.ndarray, "n_ablations n_examples"]:
    """The metric of each example in each ablated run of its clean prompt.

    The blocks before the first site run once a batch, however many ablations there are.

    Args:
        model: the model with its SAEs.
        groups: examples, those of one group of one length; results are in their order.
        metric: of the last logits.
        ablations: one run each.
        reference: what nodes are moved to.
        means: what `mean` is read from.
        batch: examples at a time.

    Raises:
        SaescopeError: a node at a position that the prompts do not have; a counterfactual of single prompts.
    """
    hooks = [hook for site in model.sites for hook in site.hooks]
    columns = []
    for part in (part for group in groups for part in group.batches(batch)):
        states = reference_states(model, part, reference, means)
        with model.model.replayed(hooks):
            runs = [_metric(model, part, metric, ablation, states) for ablation in ablations]
        columns.append(torch.stack(runs).double().cpu().numpy())
    return np.concatenate([np.zeros((len(ablations), 0)), *columns], axis=1)


def _metric(
    model: CircuitModel, part: Examples, metric: Metric, ablation: Ablation, states: dict[Site, State]
) -> Float[Tensor, " n_examples"]:
    return value(metric, model.run(part.clean, part.keep, ablated(model, part, ablation, states)), part)


def ablated(
    model: CircuitModel, examples: Examples, ablation: Ablation, states: dict[Site, State]
) -> dict[Site, Reconstruct]:
    """What `CircuitModel.run` needs to run an ablation; sites at which nothing is moved are left out.

    Args:
        model: the model with its SAEs.
        examples: whose kept rows `states` are.
        ablation: what is moved.
        states: the reference of each site.
    """
    positions = position_of_rows(examples)
    kept = {site: _kept(model, i, ablation, examples.n_ctx) for i, site in enumerate(model.sites)}
    return {
        site: _Ablate(model, site, here, positions, states[site]) for site, here in kept.items() if not here.all().all()
    }


@dataclass(frozen=True)
class _Kept:
    """What of a site is not moved, position by position."""

    features: Bool[Tensor, "n_ctx d_sae"]
    error: Bool[Tensor, " n_ctx"]
    skip: Bool[Tensor, " n_ctx"]

    def all(self) -> Bool[Tensor, " n_ctx"]:
        """Positions at which nothing is moved."""
        return self.features.all(1) & self.error & self.skip

    def any(self) -> Bool[Tensor, " n_ctx"]:
        """Positions at which not all is moved."""
        return self.features.any(1) | self.error | self.skip


def _kept(model: CircuitModel, site: int, ablation: Ablation, n_ctx: int) -> _Kept:
    nodes = ablation.nodes.at(site)
    if len(nodes) and int(nodes.position.max()) >= n_ctx:
        raise SaescopeError(
            f"The circuit has a node at position {int(nodes.position.max())}, and these prompts have {n_ctx} tokens: take "
            "examples of one length, or nodes summed over positions."
        )
    inside = torch.zeros(n_ctx, model.saes[model.sites[site]].d_sae + 2, dtype=torch.bool)  # the last: skip, error
    anywhere = torch.from_numpy(nodes.position == ANYWHERE)
    position, feature = torch.from_numpy(nodes.position), torch.from_numpy(nodes.feature)
    inside[:, feature[anywhere]] = True
    inside[position[~anywhere], feature[~anywhere]] = True
    kept = inside if ablation.moved == "outside" else ~inside
    error = kept[:, ERROR] if ablation.errors == "circuit" else torch.full((n_ctx,), ablation.errors == "kept")
    return _Kept(kept[:, :SKIP], error, kept[:, SKIP])


class _Ablate:
    """The new target of a site's kept rows; see the head of this file."""

    def __init__(
        self, model: CircuitModel, site: Site, kept: _Kept, positions: Int64[Tensor, " n_rows"], reference: State
    ) -> None:
        self.model, self.site, self.kept, self.positions, self.reference = model, site, kept, positions, reference
        moved = self._entries(reference.code, positions, kept=False)
        self.base = model.decode(site, moved) + torch.where(kept.error[positions, None], 0, reference.error)
        self.base = self.base + torch.where(kept.skip[positions, None], 0, reference.offset)
        whole = kept.all()[positions]
        self.as_found, self.mixed = whole.nonzero()[:, 0], (kept.any()[positions] & ~whole).nonzero()[:, 0]

    def __call__(self, rows: SiteRows, mask: Bool[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_rows d_out"]:  # noqa: ARG002
        """Only rows of which something is kept are encoded."""
        new = self.base.clone()
        new[self.as_found] = rows.target[self.as_found].to(new)
        if len(self.mixed):
            state = self.model.state(self.site, SiteRows(rows.x[self.mixed], rows.target[self.mixed]))
            at = self.positions[self.mixed]
            found = self.model.decode(self.site, self._entries(state.code, at, kept=True))
            found = found + torch.where(self.kept.error[at, None], state.error, 0)
            new[self.mixed] += found + torch.where(self.kept.skip[at, None], state.offset, 0)
        return new

    def _entries(self, code: SparseCode, positions: Int64[Tensor, " n_rows"], *, kept: bool) -> SparseCode:
        """The features of a code that are kept, or those that are moved."""
        rows, feature = code.rows(), code.feature.long()
        chosen = self.kept.features[positions[rows], feature] == kept
        return from_pairs(rows[chosen], feature[chosen], code.value[chosen], code.n_rows, code.d_sae)
