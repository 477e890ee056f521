"""What an intervention does to the nodes of a site.

    ablate   v' = reference        zero, or the reference states that are given
    patch    v' = what another prompt has there
    clamp    v' = value            features only
    add      v' = v + value        features only
    scale    v' = value · v

v is a feature's value; of an error the vector, of a skip path the vector that it adds to the bias. The nodes named move and
all others of the site stay; v is what the run itself has there, after what was done at earlier sites.
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
    """What is done to a group of nodes.

    Attributes:
        nodes: of any sites; ANYWHERE is every kept position.
        mode: see the head of this file.
        value: of clamp, add and scale.
        source: of patch: tokens `[n_examples, n_ctx]` of other prompts; None takes the examples' counterfactual ones.
    """

    nodes: Nodes
    mode: Mode = "ablate"
    value: float = 0.0
    source: Int[Tensor, "n_examples n_ctx"] | None = None


class Moves:
    """What interventions make of the state of a site."""

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
        """The site's state with its nodes moved."""
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
    """Which rows are at a position, or ANYWHERE."""
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
    """An error's or skip path's vector in its new place: another's, or scaled."""
    return torch.where(rows[:, None], one.value * found if other is None else other.to(found), found)


def check(model: CircuitModel, examples: Examples, one: Intervention) -> None:
    """Refuse what `intervene` says that it refuses of an intervention."""
    check_nodes(model, examples, one.nodes)
    if one.mode in ("clamp", "add") and not one.nodes.features.all():
        raise SaescopeError(f"An error or a skip path is a vector: ablate, patch or scale it; {one.mode} is of features.")
    if one.mode == "patch":
        source = examples.corrupt if one.source is None else one.source
        if source is None:
            raise SaescopeError("These examples have no counterfactual prompts to patch from: give `source`.")
        if source.shape != examples.clean.shape:
            raise SaescopeError(
                f"The prompts to patch from have shape {list(source.shape)}, those that run {list(examples.clean.shape)}."
            )


def check_nodes(model: CircuitModel, examples: Examples, nodes: Nodes) -> None:
    """Refuse nodes that the model's sites, their SAEs or the prompts do not have."""
    kept = set(examples.keep.any(0).nonzero()[:, 0].tolist())
    for site, position, feature in nodes.triples:
        if not 0 <= site < len(model.sites):
            raise SaescopeError(f"A node is of site {site}, and the sites are 0 to {len(model.sites) - 1}.")
        sae = model.saes[model.sites[site]]
        if feature >= sae.d_sae:
            raise SaescopeError(f"The SAE of {model.sites[site].output} has {sae.d_sae} features and no number {feature}.")
        if feature == SKIP and not sae.has_offsets:
            raise SaescopeError(f"The SAE of {model.sites[site].output} has no skip path.")
        if position != ANYWHERE and position not in kept:
            raise SaescopeError(
                f"A node is at position {position}, where no SAE is spliced in: the prompts have {examples.n_ctx} tokens, "
                "and special ones are left alone."
            )
