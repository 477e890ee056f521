"""The Steer tab for the user's own module: one input, and its outputs with and without steering."""

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from analysis.render.steering import compared_outputs
from analysis.render.text import number
from dashboard.frame import tried
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.model_results import steered_input
from dashboard.state.selection import names
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.steering.inputs import Positions

MODES = ("add", "clamp")
ALSO = "44=0 holds feature 44 at 0; 920+12.5 adds 12.5 to feature 920; 7-3 subtracts 3 from feature 7"
POSITIONS = "all; active (where the feature fires in this input); or position numbers from 0, row by row: 5, 6"


def steer_input(place: CurrentFeature) -> None:
    """Draw the form and both outputs of an input (by default the strongest example's) for this and any further features."""
    top = max(1e-3, abs(place.index.feature(place.feature).max))
    strongest = place.index.examples(place.feature, n=1)
    first_input = strongest[0].seq if strongest else 0
    form = address.Form(always=("strength",))
    with st.form("steer", border=False):
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.number_input("Input", 0, place.index.n_seqs - 1,
                           **form.integer("input", 0, place.index.n_seqs - 1, default=first_input),
                           help="Number of the context; shown in each example's title")
        second.segmented_control("How", MODES, required=True, **form.choice("mode", MODES, default="add"), width="stretch",
                                 help="add: add the strength to the feature; clamp: hold the feature at it")
        third.text_input("Positions", **form.text("at", default="all"), help=POSITIONS)
        first, second = st.columns([1, 2], vertical_alignment="bottom")
        first.number_input("Strength", -100 * top, 100 * top,
                           **form.number("strength", -100 * top, 100 * top, default=float(f"{2 * top:.2g}")),
                           help=f"In the feature's own units; its largest value is {number(top)}")
        second.text_input("Further features", **form.text("also"), placeholder="44=0, 920+12.5", help=ALSO)
        st.form_submit_button("Run both ways", icon=":material/play_arrow:", on_click=form.submit)
    if "strength" in st.query_params:  # the form was submitted, here or by whoever shared the link
        tried(lambda: _asked(place))


def _asked(place: CurrentFeature) -> None:
    from analysis.steering.edits import edits
    from analysis.steering.generate import Edit

    asked, number_ = st.session_state, int(st.session_state["input"])
    every = [Edit(place.feature, asked["strength"], asked["mode"]), *edits(asked["also"], place.index.d_sae)]
    positions = _positions(asked["at"], place, number_)
    result = steered_input(place.chosen.run.folder, number_, tuple(every), positions)
    html = compared_outputs(result, names(place.chosen), place.go)
    st.html(f'<div class="sx" data-steered="done">{html}</div>')


def _positions(text: str, place: CurrentFeature, number_: int) -> "Positions":
    """Parse the positions field.

    Raises:
        SaescopeError: it is neither all, active nor numbers.
    """
    if text.strip() == "all":
        return "all"
    if text.strip() == "active":
        return tuple(np.flatnonzero(place.index.values(place.feature, number_)).tolist())
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise SaescopeError(f"Positions must be all, active, or numbers such as 5, 6; got {text!r}.")
    return tuple(map(int, parts))
