"""The Compare page: two features of the same or different runs side by side, and nearest features in other runs."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import streamlit as st

from analysis.index import indexes
from analysis.index.queries.feature_pair import compare, same_space, same_text
from analysis.index.queries.other_sae import Nearest, nearest
from analysis.index.types import Feature
from analysis.render import cofire
from analysis.render import feature_pair as drawn
from analysis.render.feature import header, reference
from analysis.render.figures import histogram
from analysis.render.text import shown
from dashboard.components.drawing import drawing
from dashboard.components.navigation import navigation
from dashboard.escaping import plain, visible
from dashboard.heading import choose
from dashboard.state import address
from dashboard.state.selection import Selection, names, of_run
from dashboard.state.watched_runs import all_runs
from sae.errors import SaescopeError

N_EXAMPLES = 8
N_RUNS = 8
"""Maximum number of other runs searched for nearest features."""


@dataclass(frozen=True)
class Side:
    """One of the two features."""

    chosen: Selection
    feature: int
    go: Callable[[int], str]
    """URL of another feature of the same run."""
    mark: str
    """Short name next to values: `#3`, or `run #3` if the two runs differ."""

    @property
    def name(self) -> str:
        """Number and name as HTML, preceded by the run if the two runs differ."""
        run = "" if self.mark.startswith("#") else f"{shown(self.chosen.run.name)} "
        return run + reference(self.feature, names(self.chosen), self.go)


def page() -> None:
    """Draw the page."""
    chosen = choose("Compare")
    try:
        a, b = _sides(chosen)
    except SaescopeError as error:
        navigation()
        st.error(plain(str(error)), icon=":material/error:")
        return
    _walk(a, b)
    found = compare(a.chosen.index, a.feature, b.feature, b.chosen.index)
    st.html(drawn.summary(found, a.name, b.name))
    features = [side.chosen.index.feature(side.feature) for side in (a, b)]
    two = a.chosen.run != b.chosen.run
    for place, column, side, feature in zip("ab", st.columns(2, gap="large"), (a, b), features, strict=True):
        with column:
            _head(place, side, feature, two=two)
    st.html(drawn.facts(*features) + drawn.promoted(*features))
    for column, side, feature in zip(st.columns(2, gap="large"), (a, b), features, strict=True):
        sign = "-" if feature.max <= 0 < feature.n_negative else "+"
        top = side.chosen.index.examples(feature.feature, "top", sign, N_EXAMPLES)
        column.html(drawn.examples(top, feature, side.name))
    if found.both is not None:
        st.header("Where both fire")
        st.html(f'<div class="sx">{cofire.both(found.both, a.name, b.name, (a.mark, b.mark))}</div>')
    _elsewhere(a)


def _head(place: str, side: Side, feature: Feature, *, two: bool) -> None:
    """Draw one feature's number, label and histogram."""
    one, labels = feature.feature, side.chosen.labels
    head = header(feature, labels.get(one), labels.tags(one), labels.note(one), brief=True)
    run = f'<div class="sx-quiet">{shown(side.chosen.run.name)}</div>' if two else ""
    st.html(f'<div class="sx" data-compared="{one}">{run}{head}</div>')
    if not feature.dead:
        drawing(f"<h3>Values when active</h3>{histogram.svg(feature)}", key=f"histogram {place}")


def _sides(chosen: Selection) -> tuple[Side, Side]:
    """Both features, from the URL and the form fields; by default feature 0 and the decoder neighbour of the other.

    Raises:
        SaescopeError: there is no such run or feature.
    """
    run = chosen.run.name
    f = _number(chosen, st.query_params.get("f", "0"))
    near = chosen.index.neighbours(f, "decoder")
    nearest_one = near[0].feature if near else min(f + 1, chosen.index.d_sae - 1)
    address.settle("f", f)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.session_state["left"] = f"{run}:{f}"
        st.text_input("Feature", key="left", on_change=_left_changed, width=260, help="A number, or RUN:NUMBER")
        asked = st.text_input("with", width=260, help="A number of the same run, or RUN:NUMBER of another",
                              **address.text("with", default=str(nearest_one)))
        other, g = _parsed(asked, run)
        two = other != run
        swapped = address.link(**{**(address.of_run(other) if two else {}), "f": g, "with": f"{run}:{f}" if two else f})
        st.html(f'<div class="sx sx-walk sx-low"><a href="{escape(swapped, quote=True)}">⇄ swap</a> '
                '<button data-copy="link">copy link</button></div>')
    address.settle("with", asked)
    theirs = _opened(other, chosen) if two else chosen
    return (
        Side(chosen, f, _opener(run), f"{visible(run)} #{f}" if two else f"#{f}"),
        Side(theirs, _number(theirs, g), _opener(other), f"{visible(other)} #{g}" if two else f"#{g}"),
    )


def _left_changed() -> None:
    """Select another feature, possibly of another run."""
    here = address.get("run") or ""
    run, f = _parsed(st.session_state["left"], here)
    address.update(**{**(address.of_run(run) if run != here else {}), "f": f})


def _parsed(text: str, run: str) -> tuple[str, str]:
    """Parse `RUN:NUMBER`, or a number in `run`; run names may contain colons."""
    before, _, number = text.strip().rpartition(":")
    return before.strip() or run, number.strip().removeprefix("#")


def _number(chosen: Selection, text: str) -> int:
    d_sae = chosen.index.d_sae
    if not (text.isascii() and text.isdecimal() and int(text) < d_sae):
        raise SaescopeError(f"{chosen.run.name} has features 0 to {d_sae - 1}; there is no feature “{text[:40]}”.")
    return int(text)


def _opened(name: str, beside: Selection) -> Selection:
    """Open another run, with its index over the same text if it has one."""
    run = next((run for run in all_runs() if run.name == name), None)
    if run is None:
        raise SaescopeError(f"There is no run “{name[:80]}”; use RUN:NUMBER with a run from the list above.")
    found = [of_run(run, folder) for folder in indexes(run.folder)]
    if not found:
        raise SaescopeError(f"{name} has no index yet; build one with `sae index {name}`.")
    return next((one for one in found if same_text(one.index, beside.index)), found[0])


def _opener(run: str) -> Callable[[int], str]:
    to = address.linker("feature", **(address.of_run(run) if run != address.get("run") else {}))
    return lambda feature: to(f=feature)


def _walk(a: Side, b: Side) -> None:
    """j and k step through the first feature's decoder neighbours."""
    near = [one.feature for one in a.chosen.index.neighbours(a.feature, "decoder")]
    here, every = address.linker(), address.link("features", p="f")
    at = near.index(b.feature) if b.feature in near and a.chosen.run == b.chosen.run else -1
    navigation(walk=[here(**{"with": feature}) for feature in near], at=at, title=f"{a.mark} with {b.mark}",
               keys={"b": every, "/": every})


def _elsewhere(a: Side) -> None:
    """Nearest features in the newest other runs that have the same text or the same site."""
    others = []
    for run in all_runs():
        if run.name == a.chosen.run.name or not indexes(run.folder):
            continue
        try:
            one = _opened(run.name, a.chosen)
        except SaescopeError:
            continue  # its own pages show the error
        if same_space(a.chosen.index, one.index) or same_text(a.chosen.index, one.index):
            others.append(one)
    st.header("Nearest in other runs")
    if not others:
        st.text("No other run has an index over the same text or reconstructs the same site of the same model.")
        return
    if len(others) > N_RUNS:
        st.text(f"In the {N_RUNS} newest of {len(others)} other runs. To compare with any other, enter RUN:NUMBER above.")
    here = address.linker()
    for one in others[:N_RUNS]:
        name = one.run.name
        found = _nearest(a.chosen.key, a.feature, one.key, a.chosen.index, one.index)
        st.html(drawn.nearest(shown(name), found, names(one), _opener(name), _beside(here, name)))


def _beside(here: Callable[..., str], run: str) -> Callable[[int], str]:
    return lambda feature: here(**{"with": f"{run}:{feature}"})


@st.cache_data(max_entries=256, show_spinner=False)
def _nearest(key: tuple[str, ...], feature: int, other: tuple[str, ...], _index: Any, _other: Any) -> Nearest:  # noqa: ARG001
    return nearest(_index, feature, _other)
