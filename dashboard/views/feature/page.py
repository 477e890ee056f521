"""The Feature page: everything known about one feature. It is a fragment, so that stepping to the next one is fast."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import streamlit as st

from analysis.index import indexes
from analysis.labels.first_look import good_first
from analysis.render.text import plain
from dashboard.components import reader
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address, order
from dashboard.state.current_feature import CurrentFeature, feature_linker
from dashboard.state.model_results import SOON_S, encoding, waiting
from dashboard.state.selection import Selection
from dashboard.state.watched_runs import all_runs
from dashboard.views.feature.bundle import Reading, bundle, reading
from dashboard.views.feature.export import export
from dashboard.views.feature.fires_with import fires_with
from dashboard.views.feature.label import label
from dashboard.views.feature.moments import statistics
from dashboard.views.feature.steer import steer

TABS: dict[str, Callable[[CurrentFeature], None]] = {
    "with": fires_with, "steer": steer, "statistics": statistics, "label": label, "export": export,
}
"""Tabs drawn by Python; the Examples tab is drawn in the browser."""
N_WALK = 60
"""Features to either side whose numbers are sent to the browser."""
N_AHEAD, N_BEHIND = 6, 2
"""Features after and before the current one that are sent in full, so that stepping to them needs no server."""
N_AT_ONCE = 4
VIEW = {"numbers": False, "breaks": True, "logx": True, "logy": False}
"""Display toggles and their defaults."""


def page() -> None:
    """Draw the page."""
    chosen = choose("Feature", bare=True)
    _body(chosen, _whose())


def _whose() -> tuple[str | None, ...]:
    return tuple(address.get(key) for key in ("page", "run", "index"))


@st.fragment
def _body(chosen: Selection, whose: tuple[str | None, ...]) -> None:
    address.caught_up()
    if _whose() != whose:
        st.rerun()  # a link went to another page
    now = order.of(chosen)
    features = now.features
    feature = _feature(chosen, features)
    if st.query_params.get("f") != str(feature):
        address.settle("f", feature)
    place = CurrentFeature(chosen, feature, feature_linker())
    every = address.link("features", p="f")
    navigation(keys={"r": place.go("random"), "b": every, "/": every}, title=f"#{feature}", more=reader.KEYS)
    tab = st.query_params.get("tab", "")
    reader.bar(_shown(place, features, tab if tab in TABS else "examples"), place.labels)
    with st.container(key="feature-body"):
        left, right = st.columns([2, 5], gap="medium")
    with left:
        reader.part("side")
    with right:
        if chosen.reads_text:
            reader.part("try")
        if tab in TABS:
            TABS[tab](place)
        else:
            reader.part("examples")


def _feature(chosen: Selection, features: Sequence[int]) -> int:
    """The URL's feature; a random one that fires for `f=random`; without one, a good first feature."""
    asked = st.query_params.get("f", "")
    if asked == "random":
        alive = chosen.index.top("feature", False, "n_active > 0", limit=chosen.index.d_sae, columns=["feature"])
        numbers = alive["feature"].to_pylist() or [0]
        asked = str(random.choice(numbers))
        address.update(f=asked)
    if asked.isdecimal() and int(asked) < chosen.index.d_sae:
        return int(asked)
    ordered = any(key in st.query_params for key in order.KEYS)
    shown = features[0] if ordered and features else good_first(chosen.index, chosen.labels)
    if asked:
        st.warning(f"This run has features 0 to {chosen.index.d_sae - 1}; there is no “{plain(asked, limit=20)}”. "
                   f"Showing {shown}.")
    return shown


def _shown(place: CurrentFeature, features: Sequence[int], tab: str) -> dict[str, Any]:
    """The data sent to the reader in the browser."""
    chosen, asked = place.chosen, st.query_params
    read, wait, refused = _reading(place)
    at = features.index(place.feature) if place.feature in features else -1
    first = max(0, at - N_WALK)
    walk = list(features[first : max(at, 0) + N_WALK + 1])
    stamp = _stamp(chosen, read)
    view = {key: asked.get(key, str(default).lower()) == "true" for key, default in VIEW.items()}
    fixed = "" if place.labels.writable else "Labels can't be edited: their file is unreadable or its folder not writable."
    return {
        "whose": f"{chosen.run.name} {place.labels.weights}", "stamp": stamp, "feature": place.feature,
        "features": [bundle(replace(place, feature=one), read) for one in _wanted(place.feature, walk, stamp, tab)],
        "written": {str(place.feature): asdict(place.labels.written(place.feature))},
        "walk": walk, "first": first, "total": len(features), "order": _order(), "tab": tab, "view": view, "defaults": VIEW,
        "here": address.link(), "every": address.link("features", p="f"), "ofFeature": address.OF_FEATURE,
        "d_sae": place.index.d_sae,
        "runs": [run.name for run in all_runs()], "run": chosen.run.name,
        "runAddress": address.link(**{**address.of_run(""), "run": None}) + "&run=",
        "indexes": [folder.name for folder in indexes(chosen.run.folder)], "index": chosen.index.name,
        "lists": list(place.labels.lists()), "fixed": fixed, "text": asked.get("text", ""), "wait": wait,
        "refused": refused, "range": asked.get("range", "") if read.range else "",
    }


def _reading(place: CurrentFeature) -> tuple[Reading, str, str]:
    """The display options, a message while the text is being encoded, and the error if it can't be."""
    text = st.query_params.get("text", "")
    if not text.strip():
        return reading(place.index.sides, None), "", ""
    job = encoding(place.chosen.run.folder, text, place.index.refine)
    if not job.ended.wait(SOON_S):
        return reading(place.index.sides, None), waiting(job, "The model is reading the text"), ""
    return reading(place.index.sides, job.result), "", "" if job.error is None else str(job.error)


def _stamp(chosen: Selection, read: Reading) -> str:
    """Cache key for the browser: changes if features would be drawn differently."""
    text = read.code.text if read.code else None
    told = repr((chosen.key, chosen.labels.stamp(), read.group, read.side, read.range, text))
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:16]


def _wanted(feature: int, walk: Sequence[int], stamp: str, tab: str) -> list[int]:
    """The features to send now: the current one first, then those likely to come next."""
    held = reader.held(stamp)
    if feature not in held:
        return [feature]
    if tab != "examples" or feature not in walk:
        return []
    at = walk.index(feature)
    near = [*walk[at + 1 : at + 1 + N_AHEAD], *reversed(walk[max(0, at - N_BEHIND) : at])]
    return [one for one in near if one not in held][:N_AT_ONCE]


def _order() -> str:
    """Describe the list that j and k step through."""
    asked = st.query_params
    search = f"for “{plain(asked['q'], limit=30)}” " if asked.get("q", "").strip() else ""
    by = "best first" if search and "sort" not in asked else f"by {plain(asked.get('sort', 'number'), limit=30)}"
    return f"{search}{by}{', filtered' if any(key in asked for key in ('filter', 'box', 'list')) else ''}"
