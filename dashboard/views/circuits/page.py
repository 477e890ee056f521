"""The Circuits page: explore, prune, pin, group, name and judge the nodes of a feature graph, and intervene on them.

Circuits are stored next to runs/: folders written by `sae circuit`, or graph files of circuit-tracer and Neuronpedia.
Viewing one needs no model. The user's changes to a graph are the URL's `view` (`analysis.circuits.view`).
"""

import json
import math
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.circuits.formats.circuit_tracer.writing import to_graph
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.formats.store import MANIFEST, plain
from analysis.circuits.graph import Circuit
from analysis.circuits.view import MAX_CHARS, View, view_of, with_view
from analysis.render.circuit_data import graph_data
from analysis.render.circuit_text import circuit_lines
from dashboard import escaping
from dashboard.components import save
from dashboard.components.circuit_graph import circuit_graph
from dashboard.components.navigation import navigation
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.views.circuits import node, tracing
from dashboard.views.circuits.intervene import intervene
from sae.errors import SaescopeError

N_LEGIBLE = 400
"""Maximum number of edges drawn at first; a slider shows the rest."""
EXAMPLE = Path(__file__).parents[2] / "example_circuit.json"
"""Shown if there are no circuits: the circuit of docs/results/agreement.csv."""


def page() -> None:
    """Draw the page."""
    root = runs_folder().absolute().parent
    folder = root / "circuits"
    tracing.opened(root)
    found = {path.name: path for path in sorted(folder.glob("*")) if _is_graph(path)}
    shown = found or {EXAMPLE.name: EXAMPLE}
    names = list(shown)
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    row.title("Circuits", width="content")
    name = row.selectbox(
        "Circuit", names, **address.choice("circuit", names, default=names[0], clears=("view", tracing.OPENS)), width=320,
        format_func=escaping.visible,
    )
    navigation()
    if not found:
        st.text(f"No circuits yet (folder: {escaping.shell(folder)}). Shown is an example: subject–verb agreement in "
                "SmolLM2-135M. Find your first one with:")
        st.code("make circuit-demo", language=None)
    tracing.trace(root)
    stamp = _stamp(shown[name])
    circuit, data, measured = _opened(str(shown[name]), stamp)
    came_with = _legible(view_of(circuit), data)
    view = _view(circuit, came_with)
    circuit_graph(data, view, node.links(circuit), node.card(circuit, view.clicked), came_with)
    with row:
        save.button("Graph file", f"{name.removesuffix('.json')}.json", lambda: _file(circuit, view),
                    help="for circuit-tracer, Neuronpedia and this page: with pins, groups, names and judgements")
    intervene(circuit, view, stamp)
    with st.expander("What was measured"):
        st.text(measured)


def _is_graph(path: Path) -> bool:
    return path.suffix == ".json" or (path.is_dir() and (path / MANIFEST).is_file())


def _stamp(path: Path) -> float:
    return (path / MANIFEST if path.is_dir() else path).stat().st_mtime


@st.cache_resource(max_entries=8, show_spinner=False)
def _opened(path: str, stamp: float) -> tuple[Circuit, dict[str, Any], str]:  # noqa: ARG001 (a changed file is a new entry)
    """A circuit, its drawing data, and its measurements as text."""
    circuit = open_circuit(path)
    return circuit, graph_data(circuit), "\n".join(circuit_lines(circuit))


def _legible(view: View, data: dict[str, Any]) -> View:
    """If the view doesn't limit edges, limit it to the `N_LEGIBLE` most influential."""
    shares = sorted(data["edges"]["share"])
    if view.edge_share < 1 or len(shares) <= N_LEGIBLE:
        return view
    return view.model_copy(update={"edge_share": max(0.02, math.floor(100 * shares[N_LEGIBLE]) / 100)})


def _view(circuit: Circuit, came_with: View) -> View:
    """The URL's view, else the graph's default view."""
    text = st.query_params.get("view")
    if text is None:
        return came_with
    if len(text) > MAX_CHARS:
        st.warning(f"This view has {len(text):,} characters; URLs longer than {MAX_CHARS:,} may be truncated. "
                   "Download the graph file to keep all of it.", icon=":material/link_off:")
    try:
        return View.read(text).of(circuit)
    except SaescopeError as error:
        st.warning(escaping.plain(str(error)), icon=":material/warning:")
        return came_with


def _file(circuit: Circuit, view: View) -> str:
    graph = to_graph(with_view(circuit, view), tokens=None)
    return json.dumps(plain(graph.model_dump(exclude_none=True)), ensure_ascii=False)

