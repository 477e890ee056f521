"""Runs of a model in which some nodes are moved to their reference: what every check of a circuit is made of.

Each node has a share, 1 where it keeps the value that it has in this run, and 0 where it is moved to its reference:

    new target = Σ_f (s v + (1 − s) v_ref)_f W_f + (s error + (1 − s) error_ref) + (s offset + (1 − s) offset_ref)

v, error and offset are computed from what arrives in this very run, which earlier sites have changed. Where everything is
kept that is the model, where nothing is it is the reference. Rows outside the keep-mask pass unchanged. Under autograd a
run passes gradients on through what is kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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


Shares = dict[Site, Tensor]
"""Of each site a table `[n_ctx, d_sae + 2]` of the shares of its nodes; the last two columns are SKIP and ERROR, whose
numbers as features find them there."""


@torch.no_grad()
def measure(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, ablations: Sequence[Ablation], *,
    reference: Reference = "mean", means: Means | None = None, batch: int = 32,
    progress: Callable[[int], None] | None = None,
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
        progress: told of every ablated run of an example that is done.

    Raises:
        SaescopeError: a node at a position that the prompts do not have; a counterfactual of single prompts.
    """
    hooks = [hook for site in model.sites for hook in site.hooks]
    columns = []
    for part in (part for group in groups for part in group.batches(batch)):
        states = reference_states(model, part, reference, means)
        with model.model.replayed(hooks):
            runs = []
            for ablation in ablations:
                runs.append(_metric(model, part, metric, ablation, states))
                if progress:
                    progress(len(part))
        columns.append(torch.stack(runs).double().cpu().numpy())
    return np.concatenate([np.zeros((len(ablations), 0)), *columns], axis=1)


def _metric(
    model: CircuitModel, part: Examples, metric: Metric, ablation: Ablation, states: dict[Site, State]
) -> Float[Tensor, " n_examples"]:
    shares = shares_of(model, ablation, part.n_ctx)
    return value(metric, model.run(part.clean, part.keep, ablated(model, part, shares, states)), part)


def ablated(
    model: CircuitModel, examples: Examples, shares: Shares, states: Mapping[Site, State]
) -> dict[Site, Reconstruct]:
    """What `CircuitModel.run` needs to run with these shares; sites at which nothing is moved are left out.

    Args:
        model: the model with its SAEs.
        examples: whose kept rows `states` are.
        shares: of each site.
        states: the reference of each site.
    """
    positions = position_of_rows(examples)
    return {
        site: _Ablate(model, site, table, positions, states[site])
        for site, table in shares.items() if not (table == 1).all()
    }


def shares_of(model: CircuitModel, ablation: Ablation, n_ctx: int) -> Shares:
    """1 for the nodes that an ablation leaves as they are, 0 for those that it moves.

    Raises:
        SaescopeError: a node at a position that the prompts do not have.
    """
    last = int(ablation.nodes.position.max(initial=ANYWHERE))
    if last >= n_ctx:
        raise SaescopeError(
            f"The circuit has a node at position {last}, and these prompts have {n_ctx} tokens: take examples of one "
            "length, or nodes summed over positions."
        )
    inside, outside = (1.0, 0.0) if ablation.moved == "outside" else (0.0, 1.0)
    tables = {}
    for i, (site, sae) in enumerate(model.saes.items()):
        nodes, table = ablation.nodes.at(i), torch.full((n_ctx, sae.d_sae + 2), outside, dtype=sae.W_dec.dtype)
        anywhere = nodes.position == ANYWHERE
        table[:, nodes.feature[anywhere]] = inside
        table[nodes.position[~anywhere], nodes.feature[~anywhere]] = inside
        if ablation.errors != "circuit":
            table[:, ERROR] = ablation.errors == "kept"
        tables[site] = table
    return tables


class _Ablate:
    """The new target of a site's kept rows; see the head of this file."""

    def __init__(
        self, model: CircuitModel, site: Site, table: Float[Tensor, "n_positions d"], positions: Int64[Tensor, " n_rows"],
        reference: State,
    ) -> None:
        self.model, self.site, self.table, self.positions = model, site, table, positions
        moved = 1 - table[positions][:, [ERROR, SKIP]]
        self.base = model.decode(site, self._weighed(reference.code, positions, moved=True))
        self.base = self.base + moved[:, :1] * reference.error + moved[:, 1:] * reference.offset
        whole = (table == 1).all(1)
        self.as_found = whole[positions].nonzero()[:, 0]
        self.mixed = ((table != 0).any(1) & ~whole)[positions].nonzero()[:, 0]

    def __call__(self, rows: SiteRows, mask: Bool[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_rows d_out"]:  # noqa: ARG002
        """Only rows of which something is kept are encoded."""
        new = self.base.index_copy(0, self.as_found, rows.target[self.as_found].to(self.base))
        if len(self.mixed) == 0:
            return new
        state = self.model.state(self.site, SiteRows(rows.x[self.mixed], rows.target[self.mixed]))
        at = self.positions[self.mixed]
        kept = self.table[at][:, [ERROR, SKIP]]
        found = self.model.decode(self.site, self._weighed(state.code, at, moved=False))
        found = found + kept[:, :1] * state.error + kept[:, 1:] * state.offset
        return new.index_add(0, self.mixed, found)

    def _weighed(self, code: SparseCode, positions: Int64[Tensor, " n_rows"], *, moved: bool) -> SparseCode:
        """A code times the shares of its features, or times what is missing to 1."""
        rows, feature = code.rows(), code.feature.long()
        share = self.table[positions[rows], feature]
        share = 1 - share if moved else share
        chosen = share != 0
        return from_pairs(rows[chosen], feature[chosen], (code.value * share)[chosen], code.n_rows, code.d_sae)
