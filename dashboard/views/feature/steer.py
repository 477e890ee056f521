"""The tab Steer: a prompt continued without and with this feature changed."""

import streamlit as st

from analysis.render import steering
from analysis.render.text import number
from dashboard.frame import tried
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.model_results import steered
from dashboard.state.selection import names

MODES = ("add", "clamp")

def steer(place: CurrentFeature, prompt: str = "The") -> None:
    """A prompt continued without and with this feature, and others if they are named; `prompt` is the one to begin with."""
    from analysis.steering.generate import WHERE

    top = max(1.0, abs(place.index.feature(place.feature).max))
    most = 100 * top
    form = address.Form(always=("strength",))
    with st.form("steer", border=False):
        st.text_area("Prompt", **form.text("prompt", default=prompt), height=70, max_chars=address.N_CHARS)
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.segmented_control("How", MODES, required=True, **form.choice("mode", MODES, default="add"), width="stretch",
                                help="add: lengthen the feature by the strength; clamp: hold it there")
        second.selectbox("Positions", WHERE, **form.choice("at", WHERE, default="all"),
                         help="generated: from the prompt's last token on, after which the first new one is drawn")
        third.number_input("Temperature", 0.0, 10.0, step=0.1, **form.number("heat", 0.0, 10.0, default=0.8))
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.number_input("Strength", -most, most, **form.number("strength", -most, most, default=round(top, 1)),
                           help=f"In the feature's own units; its largest value is {number(top)}")
        second.number_input("Tokens", 1, 128, **form.integer("tokens", 1, 128, default=24))
        third.number_input("Seed", 0, 2**31 - 1, **form.integer("seed", 0, 2**31 - 1, default=0))
        st.text_input("Further features", **form.text("also"), placeholder="44=0, 920+12.5",
                      help="44=0 holds feature 44 at 0; 920+12.5 adds 12.5 of feature 920; 7-3 takes 3 of feature 7 away")
        st.form_submit_button("Continue both ways", icon=":material/play_arrow:", on_click=form.submit)
    if "strength" in st.query_params:  # the button was pressed, here or by who sent the link
        tried(lambda: _steered(place))


def _steered(place: CurrentFeature) -> None:
    from analysis.steering.edits import edits
    from analysis.steering.generate import Edit, Settings

    asked = st.session_state
    settings = Settings(asked["tokens"], asked["heat"], asked["seed"], asked["at"])
    every = [Edit(place.feature, asked["strength"], asked["mode"]), *edits(asked["also"], place.index.d_sae)]
    result = steered(place.chosen.run.folder, asked["prompt"], every, settings)
    st.html(f'<div class="sx" data-steered="true">{steering.compared(result, names(place.chosen), place.go)}</div>')
