"""The page Circuits: a graph of features to walk through, prune, pin, group, name, judge and intervene on.

Circuits lie beside the runs, in folders that `sae circuit` has written or as graph files of circuit-tracer and Neuronpedia;
to look at one takes no model. What a person has made of a graph is the URL's `view` (`analysis.circuits.view`).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.circuits.formats.circuit_tracer.writing import to_graph
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.formats.store import MANIFEST, plain
from analysis.circuits.graph import Circuit
from analysis.circuits.view import MAX_CHARS, View, view_of, with_view
from analysis.render.circuit_data import graph_data
from analysis.render.circuit_text import circuit_lines
from analysis.render.tables.plain import table as plain_table
from analysis.render.text import inner, number
from dashboard import escaping, frame
from dashboard.components import save
from dashboard.components.circuit_graph import circuit_graph
from dashboard.components.navigation import navigation
from dashboard.settings import runs_folder
from dashboard.state import address
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.circuits.interventions.on_prompt import Steered


EXAMPLE = Path(__file__).parents[1] / "example_circuit.json"
"""Shown where there is none: the circuit of docs/results/agreement.csv."""


def page() -> None:
    """Draw the page."""
    folder = runs_folder().absolute().parent / "circuits"
    found = {path.name: path for path in sorted(folder.glob("*")) if _is_graph(path)}
    shown = found or {EXAMPLE.name: EXAMPLE}
    names = list(shown)
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    row.title("Circuits", width="content")
    name = row.selectbox(
        "Circuit", names, **address.choice("circuit", names, default=names[0], clears=("view",)), width=320,
        format_func=escaping.visible,
    )
    navigation()
    if not found:
        st.text(f"No circuits yet (folder: {escaping.shell(folder)}). Until there are, this is an example: subject–verb "
                "agreement in SmolLM2-135M. This finds a first one:")
        st.code("make circuit-demo", language="bash")
    circuit, data = _opened(str(shown[name]), _stamp(shown[name]))
    view = _view(circuit)
    circuit_graph(data, view, _links(circuit))
    with row:
        save.button("Graph file", f"{name.removesuffix('.json')}.json", lambda: _file(circuit, view),
                    help="for circuit-tracer, Neuronpedia and this page: with pins, groups, names and judgements")
    _intervene(circuit, view)
    with st.expander("What was measured"):
        st.text("\n".join(circuit_lines(circuit)))


def _is_graph(path: Path) -> bool:
    return path.suffix == ".json" or (path.is_dir() and (path / MANIFEST).is_file())


def _stamp(path: Path) -> float:
    return (path / MANIFEST if path.is_dir() else path).stat().st_mtime


@st.cache_data(max_entries=8, show_spinner=False)
def _opened(path: str, stamp: float) -> tuple[Circuit, dict[str, Any]]:  # noqa: ARG001 (a file that changed is another)
    circuit = open_circuit(path)
    return circuit, graph_data(circuit)


def _view(circuit: Circuit) -> View:
    """That of the URL; where it has none, the one that the graph came with."""
    text = st.query_params.get("view")
    if text is None:
        return view_of(circuit)
    if len(text) > MAX_CHARS:
        st.warning(f"This view has {len(text):,} characters; addresses of more than {MAX_CHARS:,} may be cut on their way. "
                   "A graph file keeps all of it.", icon=":material/link_off:")
    try:
        return View.read(text).of(circuit)
    except SaescopeError as error:
        st.warning(escaping.plain(str(error)), icon=":material/warning:")
        return view_of(circuit)


def _links(circuit: Circuit) -> dict[int, str]:
    """The feature pages of the SAEs whose runs are here."""
    found = {}
    for i, info in enumerate(circuit.sites):
        folder = None if info.run is None else runs_folder().absolute().parent / info.run
        if folder is not None and folder.is_dir() and runs_folder().absolute() in folder.parents:
            name = folder.relative_to(runs_folder().absolute()).as_posix()
            found[i] = address.link("feature", **address.of_run(name))
    return found


def _file(circuit: Circuit, view: View) -> str:
    graph = to_graph(with_view(circuit, view), tokens=None)
    return json.dumps(plain(graph.model_dump(exclude_none=True)), ensure_ascii=False)




def _intervene(circuit: Circuit, view: View) -> None:
    """A form: the pinned nodes times a number, and what that does to the next token."""
    if not any(info.sae and info.run for info in circuit.sites):
        return
    st.subheader("Intervene on the pinned nodes")
    form = address.Form(always=("times",))
    with st.form("intervene", border=False):
        left, right = st.columns([1, 3], vertical_alignment="bottom")
        left.number_input("Times their value", -20.0, 20.0, step=0.5, **form.number("times", -20.0, 20.0, default=0.0),
                          help="0 takes them away, 1 leaves them, 2 doubles them")
        right.form_submit_button("Run", icon=":material/play_arrow:", on_click=form.submit, disabled=not view.pins)
    if "times" in st.query_params and view.pins:
        frame.tried(lambda: _steered(circuit, view))


def _steered(circuit: Circuit, view: View) -> None:
    found = _results(circuit.name, view.pins, float(st.session_state["times"]), runs_folder().absolute().parent, circuit)
    rows = [
        [a, number(p), b, number(q)] for (a, p), (b, q) in zip(found.baseline, found.steered, strict=True)
    ]
    change = f"{number(found.after - found.before)}, predicted {number(found.predicted - found.before)}"
    said = f"logit of {found.logit!r} less the mean: {number(found.before)} → {number(found.after)} (change {change})"
    both = plain_table(["baseline", "probability", "steered", "probability"], rows, caption="Next token")
    st.html(f'<div class="sx" data-steered="true">{inner(said, limit=None)}{both}</div>')


@st.cache_resource(max_entries=32, show_spinner="The model runs …")
def _results(
    name: str, pins: tuple[str, ...], times: float, root: Path, _circuit: Circuit  # noqa: ARG001
) -> "Steered":
    from analysis.circuits.interventions.on_prompt import steer_prompt

    return steer_prompt(_circuit, _circuit.select(*pins), times, root=root)
