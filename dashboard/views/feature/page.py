"""The page Feature: everything that is known of one, and what can be asked of it. A fragment, so that the next is quick."""

import random
from collections.abc import Callable, Sequence
from html import escape

import streamlit as st

from analysis.labels.first_look import good_first
from analysis.render import feature as drawn
from analysis.render.figures import histogram
from analysis.render.text import plain
from dashboard.components.drawing import drawing
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address, order
from dashboard.state.current_feature import CurrentFeature, feature_linker
from dashboard.state.selection import Selection, names
from dashboard.views.feature.examples import examples
from dashboard.views.feature.export import export
from dashboard.views.feature.fires_with import fires_with
from dashboard.views.feature.label import label
from dashboard.views.feature.own_text import own_text
from dashboard.views.feature.steer import steer

TABS: dict[str, tuple[str, Callable[[CurrentFeature], None]]] = {
    "examples": ("Examples", examples),
    "label": ("Label and notes", label),
    "with": ("Fires with", fires_with),
    "try": ("Own text", own_text),
    "steer": ("Steer", steer),
    "export": ("Export and provenance", export),
}
N_WALK = 25
"""Features to either side that j and k reach without asking the server."""


def page() -> None:
    """Draw the page."""
    chosen = choose("Feature")
    _body(chosen, _whose())


def _whose() -> tuple[str | None, ...]:
    return tuple(address.get(key) for key in ("page", "run", "index"))


@st.fragment
def _body(chosen: Selection, whose: tuple[str | None, ...]) -> None:
    if _whose() != whose:
        st.rerun()  # a link has led to another page
    now = order.of(chosen)
    feature = _feature(chosen, now.features)
    if st.query_params.get("f") != str(feature):
        address.settle("f", feature)
    place = CurrentFeature(chosen, feature, feature_linker())
    _walk(place, now.features)
    labels = place.labels
    head = drawn.header(place.index.feature(feature), labels.get(feature), labels.tags(feature), labels.note(feature))
    st.html(f'<div class="sx" data-feature="{feature}">{head}</div>')
    left, right = st.columns([2, 5], gap="large")
    with left:
        _side(place)
    with right:
        tab = st.segmented_control("Show", list(TABS), required=True, label_visibility="collapsed",
                                   format_func=lambda name: TABS[name][0],
                                   **address.choice("tab", list(TABS), default="examples"))
        TABS[tab or "examples"][1](place)


def _feature(chosen: Selection, features: Sequence[int]) -> int:
    """The feature that the URL names; a random one that fires for `f=random`; for none one to begin with."""
    asked = st.query_params.get("f", "")
    if asked == "random":
        alive = chosen.index.top("feature", False, "n_active > 0", limit=chosen.index.d_sae, columns=["feature"])
        numbers = alive["feature"].to_pylist() or [0]
        asked = str(random.choice(numbers))
        address.update(f=asked)
    if asked.isdecimal() and int(asked) < chosen.index.d_sae:
        return int(asked)
    if asked:
        st.warning(f"This run has features 0 to {chosen.index.d_sae - 1}; there is no other.")
    ordered = any(key in st.query_params for key in order.KEYS)
    return features[0] if ordered and features else good_first(chosen.index, chosen.labels)


def _walk(place: CurrentFeature, features: Sequence[int]) -> None:
    """Previous, next and random, as links and as keys."""
    at = features.index(place.feature) if place.feature in features else -1
    low = max(0, at - N_WALK)
    near = features[low : at + N_WALK + 1] if at >= 0 else features[: N_WALK + 1]
    addresses = [place.go(feature) for feature in near]
    here = at - low if at >= 0 else -1
    every = address.link("features", p="f")
    navigation(walk=addresses, at=here, title=f"#{place.feature}", keys={
        "r": place.go("random"), "b": every, "e": address.link(tab="label"), "/": every,
    })
    before = addresses[here - 1] if here > 0 else None
    after = addresses[here + 1] if here + 1 < len(addresses) else None
    links = [_link("‹ previous", before), _link("next ›", after), _link("random", place.go("random")),
             f'<a href="{escape(every, quote=True)}" data-page="features">all features</a>']
    said = f"{at + 1:,} of {len(features):,} {_told()}" if at >= 0 else "not in the list"
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="walk"):
        st.number_input("Feature", 0, place.index.d_sae - 1, label_visibility="collapsed", width=130,
                        **address.integer("f", 0, place.index.d_sae - 1, default=-1, clears=("open",))
                        | _shown(place.feature))
        st.html(f'<div class="sx sx-walk">{"".join(links)}<span class="sx-quiet">{said}</span> '
                '<button data-copy="link">copy link</button></div>')


def _told() -> str:
    """What the features are that j and k walk through."""
    asked = st.query_params
    search = f"for “{plain(asked['q'], limit=30)}”" if asked.get("q", "").strip() else ""
    by = "best first" if search and "sort" not in asked else f"by {plain(asked.get('sort', 'number'))}"
    narrowed = ", filtered" if any(key in asked for key in ("filter", "box", "list")) else ""
    return escape(f"{search} {by}{narrowed}".strip())


def _shown(feature: int) -> dict[str, str]:
    """The field shows the feature that is drawn, whatever the URL says."""
    st.session_state["f"] = feature
    return {"key": "f"}


def _link(text: str, href: str | None) -> str:
    return f'<a href="{escape(href, quote=True)}">{text}</a>' if href else f'<span class="sx-quiet">{text}</span>'


def _side(place: CurrentFeature) -> None:
    """Histogram, promoted tokens, neighbours."""
    feature = place.index.feature(place.feature)
    log_x, log_y = st.query_params.get("logx") != "false", st.query_params.get("logy") == "true"
    parts = []
    if not feature.dead:
        drawing(f"<h3>Values when active</h3>{histogram.svg(feature, log_x=log_x, log_y=log_y)}", key="histogram")
        switches = (
            _link("linear values" if log_x else "log values", address.link(logx="false" if log_x else None)) + " · "
            + _link("linear counts" if log_y else "log counts", address.link(logy=None if log_y else "true"))
            + f' · <button data-png=".sx-histogram" data-name="feature-{place.feature}.png">PNG</button>')
        parts += [f'<div class="sx-quiet">{switches}</div>', drawn.promoted(feature)]

    beside = address.linker("compare", f=place.feature)
    near = {kind: place.index.neighbours(place.feature, kind)[:10] for kind in ("decoder", "coactivation")}
    parts += [drawn.neighbours(kind, found, names(place.chosen), place.go, lambda other: beside(**{"with": other}))
              for kind, found in near.items() if found]
    st.html(f'<div class="sx">{"".join(parts)}</div>')
