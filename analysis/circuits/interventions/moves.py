"""Apply interventions to the nodes of a site.

    ablate   v' = reference        zero, or the given reference states
    patch    v' = value in another prompt
    clamp    v' = value            features only
    add      v' = v + value        features only
    scale    v' = value · v

v is a feature's value, an error's vector, or a skip path's output. All other nodes of the site keep their values. v is
taken from the run itself, so it includes the effects of interventions at earlier sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.circuits.effects.reference import zero_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.code import SparseCode
from sae.errors import SaescopeError
from training.model.edits import Edit, difference
from training.model.splice import Forward
from training.site import Site

Mode = Literal["ablate", "patch", "clamp", "add", "scale"]
States = Mapping[Site, State]


@dataclass(frozen=True)
class Intervention:
    """An intervention on a group of nodes.

    Attributes:
        nodes: nodes at any sites; position ANYWHERE is every kept position.
        mode: see the module docstring.
        value: parameter of clamp, add and scale.
        source: tokens `[n_examples, n_ctx]` of the prompts to patch from; None uses the counterfactual prompts.
    """

    nodes: Nodes
    mode: Mode = "ablate"
    value: float = 0.0
    source: Int[Tensor, "n_examples n_ctx"] | None = None


class Moves:
    """Applies interventions to a site's state."""

    def __init__(
        self, model: CircuitModel, examples: Examples, interventions: Sequence[Intervention], reference: States | None,
        forward: Forward | None,
    ) -> None:
        self.model, self.position = model, examples.keep.nonzero()[:, 1]
        self.by_site: dict[Site, list[tuple[Intervention, State | None]]] = {}
        for one in interventions:
            states: States | None = None
            if one.mode == "ablate":
                states = zero_states(model, len(self.position)) if reference is None else reference
            elif one.mode == "patch":
                source = examples.corrupt if one.source is None else one.source
                assert source is not None, "checked"
                states = model.states(source, examples.keep, forward)[0]
            for i in np.unique(one.nodes.site).tolist():
                site, mine = model.sites[i], replace(one, nodes=one.nodes.at(i))
                self.by_site.setdefault(site, []).append((mine, None if states is None else states[site]))

    def apply(self, site: Site, state: State) -> State:
        """The site's state after the interventions."""
        code, error, offset = state.code, state.error, state.offset
        bias = self.model.saes[site].bias()
        for one, other in self.by_site[site]:
            for position, features in _by_position(one.nodes).items():
                rows = at(self.position, position)
                if real := [feature for feature in features if feature >= 0]:
                    code = _edited(site, one, code, other, real, rows)
                if ERROR in features:
                    error = _vector(one, error, None if other is None else other.error, rows)
                if SKIP in features:
                    there = None if other is None else other.offset - bias
                    offset = bias + _vector(one, offset - bias, there, rows)
        change = self.model.decode(site, difference(code, state.code)) + (error - state.error) + (offset - state.offset)
        return State(state.target + change, code, offset, error)


def at(positions: Int[Tensor, " n_rows"], position: int) -> Bool[Tensor, " n_rows"]:
    """Mask of the rows at a position (all rows for ANYWHERE)."""
    return torch.ones_like(positions, dtype=torch.bool) if position == ANYWHERE else positions == position


def _by_position(nodes: Nodes) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for _, position, feature in nodes.triples:
        found.setdefault(position, []).append(feature)
    return found


def _edited(
    site: Site, one: Intervention, code: SparseCode, other: State | None, features: list[int],
    rows: Bool[Tensor, " n_rows"],
) -> SparseCode:
    if other is not None:
        return Edit(site, features, other.code).apply(code, rows)
    mode: Literal["set", "add", "scale"] = "add" if one.mode == "add" else "scale" if one.mode == "scale" else "set"
    return Edit(site, features, one.value, mode).apply(code, rows)


def _vector(
    one: Intervention, found: Float[Tensor, "n_rows d"], other: Float[Tensor, "n_rows d"] | None,
    rows: Bool[Tensor, " n_rows"],
) -> Float[Tensor, "n_rows d"]:
    """New vector of an error or a skip path: replaced, or scaled."""
    return torch.where(rows[:, None], one.value * found if other is None else other.to(found), found)


def check(model: CircuitModel, examples: Examples, one: Intervention) -> None:
    """Check an intervention; raises as `intervene`."""
    check_nodes(model, examples, one.nodes)
    if one.mode in ("clamp", "add") and not one.nodes.features.all():
        raise SaescopeError(f"{one.mode} is for features only; ablate, patch or scale errors and skip paths.")
    if one.mode == "patch":
        source = examples.corrupt if one.source is None else one.source
        if source is None:
            raise SaescopeError("These examples have no counterfactual prompts to patch from: pass `source`.")
        if source.shape != examples.clean.shape:
            raise SaescopeError(
                f"The prompts to patch from have shape {list(source.shape)}, the examples {list(examples.clean.shape)}."
            )


def check_nodes(model: CircuitModel, examples: Examples, nodes: Nodes) -> None:
    """Check that nodes exist: site, feature and position.

    Raises:
        SaescopeError: a node doesn't exist.
    """
    kept = set(examples.keep.any(0).nonzero()[:, 0].tolist())
    for site, position, feature in nodes.triples:
        if not 0 <= site < len(model.sites):
            raise SaescopeError(f"A node is at site {site}, but the sites are 0 to {len(model.sites) - 1}.")
        sae = model.saes[model.sites[site]]
        if feature >= sae.d_sae:
            raise SaescopeError(f"The SAE at {model.sites[site].output} has {sae.d_sae} features and no feature {feature}.")
        if feature == SKIP and not sae.has_offsets:
            raise SaescopeError(f"The SAE at {model.sites[site].output} has no skip path.")
        if position != ANYWHERE and position not in kept:
            raise SaescopeError(
                f"A node is at position {position}, where no SAE is spliced in: the prompts have {examples.n_ctx} tokens, "
                "and special tokens are skipped."
            )
