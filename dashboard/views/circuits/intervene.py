"""Interventions on the pinned nodes: baseline and steered logits, and predicted against measured changes."""

import streamlit as st

from analysis.circuits.graph import Circuit
from analysis.circuits.interventions.on_prompt import Steered
from analysis.circuits.view import View
from analysis.render.tables.plain import table
from analysis.render.text import inner, number, plain
from dashboard import frame
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.state.model_results import intervened
from dashboard.views.circuits.node import largest
from sae.errors import SaescopeError

OF = {"max": "× its largest value in the index", "value": "× its value here"}


def intervene(circuit: Circuit, view: View, stamp: float) -> None:
    """Draw a form that multiplies the pinned nodes by a number, and its effect on the next token and downstream nodes."""
    if not any(info.sae and info.run for info in circuit.sites):
        return
    st.header("Intervene on the pinned nodes")
    form = address.Form(always=("times", "of"))
    usual = "max" if _known(circuit, view) else "value"
    with st.form("intervene", border=False):
        left, middle, right = st.columns([1, 2, 2], vertical_alignment="bottom")
        left.number_input("Strength", -20.0, 20.0, step=0.5, **form.number("times", -20.0, 20.0, default=0.0),
                          help="0 ablates each node; 1 × its value here leaves it unchanged")
        middle.selectbox("of each node", list(OF), format_func=OF.__getitem__, **form.choice("of", list(OF), default=usual))
        right.form_submit_button("Run", icon=":material/play_arrow:", on_click=form.submit, disabled=not view.pins)
    if not view.pins:
        st.caption("First pin nodes in the graph: Ctrl-click a node, or press “pin” on its card.")
    elif "times" in st.query_params:
        frame.tried(lambda: _changed(circuit, view, stamp))


def _known(circuit: Circuit, view: View) -> bool:
    """Whether the largest values of the pinned nodes are known."""
    try:
        largest(circuit, view.pins)
    except SaescopeError:
        return False
    return True


def _changed(circuit: Circuit, view: View, stamp: float) -> None:
    maxima = largest(circuit, view.pins) if st.session_state["of"] == "max" else None
    found = intervened(circuit, stamp, view.pins, float(st.session_state["times"]), maxima, runs_folder().absolute().parent)
    change = f"{number(found.after - found.before)}, predicted {number(found.predicted - found.before)}"
    said = f"logit of {found.logit!r} minus the mean: {number(found.before)} → {number(found.after)} (change {change})"
    st.html(f'<div class="sx" data-steered="true">{inner(said, limit=None)}'
            f'<div class="sx-two">{_tokens(found)}{_behind(found)}</div></div>')


def _tokens(found: Steered) -> str:
    rows = [[cell for one in both for cell in (plain(one.token, spaces=True), number(one.logit), number(one.probability))]
            for both in zip(found.baseline, found.steered, strict=True)]
    return table(["baseline", "logit", "probability", "steered", "logit", "probability"], rows, caption="Next token")


def _behind(found: Steered) -> str:
    rows = [[one.node, number(one.before), number(one.after), number(one.predicted)] for one in found.behind]
    return table(["node", "before", "after", "predicted"], rows, caption="Downstream nodes") if rows else ""
