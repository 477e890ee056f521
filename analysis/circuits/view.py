"""What a person has made of a graph: pins, groups, names, judgements, and how much of it is shown.

A view is one text, JSON, that fits into the dashboard's URL (`?view=`): `View.read` takes that, or a whole URL, and gives
nodes to a notebook. Graph files carry it too, as `qParams` of circuit-tracer and Neuronpedia.
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
"""The longest text that the URL takes."""


class View(BaseModel):
    """Nodes are called as in `Circuit.names`. Short keys, because all of it is part of an address."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    pins: tuple[str, ...] = Field(default=(), alias="p")
    """Nodes of the subgraph that is looked at, in the order of pinning."""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = Field(default=(), alias="g")
    """Supernodes: a name, and the nodes that it stands for; a node is in one at most."""
    labels: dict[str, str] = Field(default_factory=dict, alias="l")
    """Names that a person gave to nodes."""
    judged: dict[str, bool] = Field(default_factory=dict, alias="j")
    """Whether a node is called spurious, for SHIFT."""
    clicked: str | None = Field(default=None, alias="c")
    """The node whose card is open."""
    node_share: float = Field(default=1.0, ge=0, le=1, alias="n")
    edge_share: float = Field(default=1.0, ge=0, le=1, alias="e")
    """Shares that the sliders leave."""

    @classmethod
    def read(cls, text: str) -> "View":
        """A view from its text, or from the URL of a page that has one; one without is a view of nothing in particular.

        Raises:
            SaescopeError: it is no view.
        """
        if "?" in text and not text.lstrip().startswith("{"):
            text = parse_qs(urlsplit(text).query).get("view", [""])[-1]
        if not text:
            return cls()
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SaescopeError(f"This is no view of a graph: {first_line(error)}: {text[:80]!r}.") from error

    def text(self) -> str:
        """The view as one line, defaults left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)

    def of(self, circuit: Circuit) -> "View":
        """What of it this circuit has: nodes that it has not are left out, and groups of less than two."""
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
        """The nodes of groups or of nodes by name; without names those that are pinned.

        Raises:
            SaescopeError: neither a group of this view nor a node of the circuit.
        """
        groups = dict(self.groups)
        chosen = names or self.pins
        return circuit.select(*(one for name in chosen for one in groups.get(name, (name,))))


def with_view(circuit: Circuit, view: View) -> Circuit:
    """The circuit with a view in its settings, where graph files take it from."""
    return replace(circuit, settings={**circuit.settings, "view": view.model_dump(mode="json", by_alias=True)})


def view_of(circuit: Circuit) -> View:
    """The view that a circuit came with.

    Raises:
        SaescopeError: what stands in the place of one is none.
    """
    try:
        if "view" in circuit.settings:
            return View.model_validate(circuit.settings["view"]).of(circuit)
        return _of_params(circuit, circuit.settings.get("qParams", {})).of(circuit)
    except ValidationError as error:
        raise SaescopeError(f"The view that {circuit.name} came with is none: {first_line(error)}.") from error


def params_of(view: View, ids: Mapping[str, str]) -> dict[str, Any]:
    """A view as `qParams`; judgements are a key of our own.

    Args:
        view: of the circuit that is written.
        ids: `node_id` by name.
    """
    return {
        "pinnedIds": [ids[one] for one in view.pins], "clickedId": ids[view.clicked] if view.clicked else "",
        "supernodes": [[name, *(ids[one] for one in members)] for name, members in view.groups],
        "judged": {ids[one]: yes for one, yes in view.judged.items()},
        "named": {ids[one]: text for one, text in view.labels.items()},
        "shares": [view.node_share, view.edge_share],
    }


def _of_params(circuit: Circuit, params: Mapping[str, Any]) -> View:
    """`qParams` of a file, whose nodes have ids of that format."""
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
