"""The Steer tab: continue a prompt with and without steering this feature."""

import streamlit as st

from analysis.render.steering import compared
from analysis.render.text import count, number
from dashboard.frame import tried
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.model_results import SOON_S, steering, waiting, worker
from dashboard.state.model_worker import Job
from dashboard.state.selection import names
from dashboard.views.feature.steer_input import steer_input

MODES = ("add", "clamp")
FIRST_S = 1.5
"""Wait (s) for the first token before showing a waiting message; a loaded model needs less."""
POLL_S, WAIT_S = 0.6, 2.0
"""Polling intervals (s): for new tokens, and while the model is loading, when polling would slow it down."""


def steer(place: CurrentFeature, prompt: str = "The") -> None:
    """Draw the form and both continuations: baseline, and with this feature (and any further ones) changed.

    For a run on the user's own module, show one of its inputs instead. `prompt` is the default prompt.
    """
    if place.chosen.has_own_module:
        steer_input(place)
        return
    from analysis.steering.generate import WHERE

    top = max(1.0, abs(place.index.feature(place.feature).max))
    most = 100 * top
    form = address.Form(always=("strength",))
    with st.form("steer", border=False):
        st.text_area("Prompt", **form.text("prompt", default=prompt), height=70, max_chars=address.N_CHARS)
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.segmented_control("How", MODES, required=True, **form.choice("mode", MODES, default="add"), width="stretch",
                                help="add: add the strength to the feature; clamp: hold the feature at it")
        second.selectbox("Positions", WHERE, **form.choice("at", WHERE, default="all"),
                         help="generated: from the last prompt token on, which predicts the first new token")
        third.number_input("Temperature", 0.0, 10.0, step=0.1, **form.number("heat", 0.0, 10.0, default=0.8))
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.number_input("Strength", -most, most, **form.number("strength", -most, most, default=round(top, 1)),
                           help=f"In the feature's own units; its largest value is {number(top)}")
        second.number_input("Tokens", 1, 128, **form.integer("tokens", 1, 128, default=24))
        third.number_input("Seed", 0, 2**31 - 1, **form.integer("seed", 0, 2**31 - 1, default=0))
        st.text_input("Further features", **form.text("also"), placeholder="44=0, 920+12.5",
                      help="44=0 holds feature 44 at 0; 920+12.5 adds 12.5 to feature 920; 7-3 subtracts 3 from feature 7")
        st.form_submit_button("Continue both ways", icon=":material/play_arrow:", on_click=form.submit)
    if "strength" in st.query_params:  # the form was submitted, here or by whoever shared the link
        tried(lambda: _asked(place))


def _asked(place: CurrentFeature) -> None:
    """Run the request and draw both texts, partial while the model is generating."""
    from analysis.steering.edits import edits
    from analysis.steering.generate import Edit, Settings

    asked = st.session_state
    settings = Settings(asked["tokens"], asked["heat"], asked["seed"], asked["at"])
    every = [Edit(place.feature, asked["strength"], asked["mode"]), *edits(asked["also"], place.index.d_sae)]
    job = steering(place.chosen.run.folder, asked["prompt"], every, settings)
    if not job.ended.wait(SOON_S):
        job.begun.wait(FIRST_S)
        (_writing if job.n_steps else _waiting)(place, job, settings.max_tokens)
        return
    if job.error is not None:
        raise job.error
    if job.state == "stopped":
        st.text(f"Stopped after {count(job.n_steps, 'token')}.")
        st.button("Write it again", icon=":material/replay:", on_click=lambda: worker().again(job.key))
    _texts(place, job)


@st.fragment(run_every=WAIT_S)
def _waiting(place: CurrentFeature, job: Job, n_tokens: int) -> None:
    if job.ended.is_set() or job.n_steps:
        st.rerun()
    _growing(place, job, n_tokens)


@st.fragment(run_every=POLL_S)
def _writing(place: CurrentFeature, job: Job, n_tokens: int) -> None:
    if job.ended.is_set():
        st.rerun()
    _growing(place, job, n_tokens)


def _growing(place: CurrentFeature, job: Job, n_tokens: int) -> None:
    """Both texts while they are generated, with a stop button."""
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.button("Stop", icon=":material/stop:", on_click=job.stop)
        said = "Loading the model" if not job.n_steps else f"Token {job.n_steps} of {n_tokens}"
        st.text("Stopping …" if job.stopping else waiting(job, said))
    _texts(place, job)


def _texts(place: CurrentFeature, job: Job) -> None:
    if job.result is None:
        return
    html = compared(job.result, names(place.chosen), place.go)
    st.html(f'<div class="sx" data-steered="{job.state}">{html}</div>')
