"""Ablated runs: some nodes are patched to their reference. Every check of a circuit is built from these.

Each node has a share s: 1 keeps its value in this run, 0 patches it to its reference:

    new target = Σ_f (s v + (1 − s) v_ref)_f W_f + (s error + (1 − s) error_ref) + (s offset + (1 − s) offset_ref)

v, error and offset are computed in the ablated run itself, downstream of earlier ablations. Keeping everything gives the
model, keeping nothing the reference. Rows outside the keep-mask pass unchanged. Gradients flow through what is kept.
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
"""How errors are treated: as nodes like any other, all kept, or all ablated."""


@dataclass(frozen=True)
class Ablation:
    """Which nodes a run patches to their reference.

    Attributes:
        nodes: a circuit; a node with position ANYWHERE stands for all positions.
        moved: patch the nodes outside the circuit (faithfulness), or inside it (completeness).
        errors: `circuit` treats errors as nodes like any other; `kept` patches none of them, `dropped` all.
    """

    nodes: Nodes
    moved: Literal["outside", "inside"] = "outside"
    errors: Errors = "circuit"


NOTHING_KEPT = Ablation(Nodes.empty())
"""All nodes are patched: m(∅)."""
PLAIN = Ablation(Nodes.empty(), "inside")
"""No node is patched: the model itself, m(M)."""
ALL_FEATURES = Ablation(Nodes.empty(), "inside", "dropped")
"""The model with every SAE spliced in: all features and skip paths are kept, errors are ablated."""


Shares = dict[Site, Tensor]
"""Per site, a table `[n_ctx, d_sae + 2]` of node shares; the last two columns are SKIP and ERROR (indices −2 and −1)."""


@torch.no_grad()
def measure(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, ablations: Sequence[Ablation], *,
    reference: Reference = "mean", means: Means | None = None, batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Float64[np.ndarray, "n_ablations n_examples"]:
    """The metric of each example in each ablated run of its clean prompt.

    The blocks before the first site run once per batch, whatever the number of ablations.

    Args:
        model: the model with its SAEs.
        groups: examples; each group has one length; results keep their order.
        metric: metric on the last position's logits.
        ablations: one run each.
        reference: what nodes are patched to.
        means: mean states, for the reference `mean`.
        batch: examples per forward pass.
        progress: called with the number of newly finished (ablation, example) runs.

    Raises:
        SaescopeError: a node's position is beyond the prompts, or single prompts have no counterfactual.
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
    """Replacement functions for `CircuitModel.run` that apply these shares; sites where nothing is patched are left out.

    Args:
        model: the model with its SAEs.
        examples: the examples; `states` are of their kept rows.
        shares: shares of each site's nodes.
        states: reference state of each site.
    """
    positions = position_of_rows(examples)
    return {
        site: _Ablate(model, site, table, positions, states[site])
        for site, table in shares.items() if not (table == 1).all()
    }


def shares_of(model: CircuitModel, ablation: Ablation, n_ctx: int) -> Shares:
    """Shares of an ablation: 1 for nodes that are kept, 0 for nodes that are patched.

    Raises:
        SaescopeError: a node's position is beyond the prompts.
    """
    last = int(ablation.nodes.position.max(initial=ANYWHERE))
    if last >= n_ctx:
        raise SaescopeError(
            f"The circuit has a node at position {last}, and these prompts have {n_ctx} tokens: use examples of "
            "equal length, or sum over positions."
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
    """Computes the new target of a site's kept rows; see the module docstring."""

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
        """The new target; only rows with something kept are encoded."""
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
        """Scale a code by its features' shares, or by 1 − share."""
        rows, feature = code.rows(), code.feature.long()
        share = self.table[positions[rows], feature]
        share = 1 - share if moved else share
        chosen = share != 0
        return from_pairs(rows[chosen], feature[chosen], (code.value * share)[chosen], code.n_rows, code.d_sae)
