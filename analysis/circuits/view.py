"""A user's view of a graph: pins, groups, labels, judgements, and how much of it is shown.

A view is a JSON string short enough for the dashboard's URL (`?view=`). `View.read` parses it, or a whole URL, so that a
notebook can use the same nodes. Graph files carry it too, as circuit-tracer and Neuronpedia `qParams`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import Nodes
from sae.errors import SaescopeError, first_line

MAX_CHARS = 4000
"""Longest view that fits in the URL."""


class View(BaseModel):
    """A view; node names are those of `Circuit.names`. Keys are short because they go into a URL."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    pins: tuple[str, ...] = Field(default=(), alias="p")
    """Pinned nodes (the subgraph), in the order of pinning."""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = Field(default=(), alias="g")
    """Supernodes: a name and its nodes; a node is in at most one."""
    labels: dict[str, str] = Field(default_factory=dict, alias="l")
    """Labels the user gave to nodes."""
    judged: dict[str, bool] = Field(default_factory=dict, alias="j")
    """Whether a node was judged spurious, for SHIFT."""
    clicked: str | None = Field(default=None, alias="c")
    """The node whose card is open."""
    node_share: float = Field(default=1.0, ge=0, le=1, alias="n")
    edge_share: float = Field(default=1.0, ge=0, le=1, alias="e")
    """Settings of the two pruning sliders."""

    @classmethod
    def read(cls, text: str) -> "View":
        """Parse a view from its text or from a page's URL; a URL without one gives the default view.

        Raises:
            SaescopeError: the text isn't a view.
        """
        if "?" in text and not text.lstrip().startswith("{"):
            text = parse_qs(urlsplit(text).query).get("view", [""])[-1]
        if not text:
            return cls()
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SaescopeError(f"Not a valid view of a graph: {first_line(error)}: {text[:80]!r}.") from error

    def text(self) -> str:
        """The view as one line, defaults left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)

    def of(self, circuit: Circuit) -> "View":
        """Restrict the view to this circuit: drop nodes it doesn't have, and groups left with fewer than two."""
        there = set(circuit.names)
        groups, taken = [], set[str]()
        for name, members in self.groups:
            mine = tuple(one for one in dict.fromkeys(members) if one in there and one not in taken)
            taken |= set(mine)
            if len(mine) > 1:
                groups.append((name, mine))
        return self.model_copy(update={
            "pins": tuple(one for one in dict.fromkeys(self.pins) if one in there), "groups": tuple(groups),
            "labels": {one: text for one, text in self.labels.items() if one in there},
            "judged": {one: yes for one, yes in self.judged.items() if one in there},
            "clicked": self.clicked if self.clicked in there else None,
        })

    def nodes(self, circuit: Circuit, *names: str) -> Nodes:
        """Nodes by group or node name; without names, the pinned nodes.

        Raises:
            SaescopeError: a name is neither a group of this view nor a node of the circuit.
        """
        groups = dict(self.groups)
        chosen = names or self.pins
        return circuit.select(*(one for name in chosen for one in groups.get(name, (name,))))


def with_view(circuit: Circuit, view: View) -> Circuit:
    """Store a view in the circuit's settings, where graph files read it."""
    return replace(circuit, settings={**circuit.settings, "view": view.model_dump(mode="json", by_alias=True)})


def view_of(circuit: Circuit) -> View:
    """The view stored in a circuit.

    Raises:
        SaescopeError: the stored view is invalid.
    """
    try:
        if "view" in circuit.settings:
            return View.model_validate(circuit.settings["view"]).of(circuit)
        return _of_params(circuit, circuit.settings.get("qParams", {})).of(circuit)
    except ValidationError as error:
        raise SaescopeError(f"The view stored in {circuit.name} is not valid: {first_line(error)}.") from error


def params_of(view: View, ids: Mapping[str, str]) -> dict[str, Any]:
    """A view as `qParams`; `judged`, `named` and `shares` are additions to that format.

    Args:
        view: view of the circuit that is written.
        ids: `node_id` by node name.
    """
    return {
        "pinnedIds": [ids[one] for one in view.pins], "clickedId": ids[view.clicked] if view.clicked else "",
        "supernodes": [[name, *(ids[one] for one in members)] for name, members in view.groups],
        "judged": {ids[one]: yes for one, yes in view.judged.items()},
        "named": {ids[one]: text for one, text in view.labels.items()},
        "shares": [view.node_share, view.edge_share],
    }


def _of_params(circuit: Circuit, params: Mapping[str, Any]) -> View:
    """A view from a file's `qParams`, which name nodes by `node_id`."""
    if not params:
        return View()
    from analysis.circuits.formats.circuit_tracer.writing import node_ids

    names = {one: name for name, one in node_ids(circuit).items()}
    shares = params.get("shares") or [1.0, 1.0]
    return View.model_validate({
        "p": [names[one] for one in params.get("pinnedIds", []) if one in names],
        "g": [(str(one[0]), [names[x] for x in one[1:] if x in names]) for one in params.get("supernodes", []) if one],
        "l": {names[one]: text for one, text in params.get("named", {}).items() if one in names},
        "j": {names[one]: yes for one, yes in params.get("judged", {}).items() if one in names},
        "c": names.get(params.get("clickedId", "")), "n": shares[0], "e": shares[1],
    })
