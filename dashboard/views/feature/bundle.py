"""A feature rendered for the browser in full, so that stepping to it needs no server."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.index import Index
from analysis.index.types import Feature, Group, Side
from analysis.labels.store import Label
from analysis.render import feature as drawn
from analysis.render import names as named
from analysis.render import tokens
from analysis.render.feature import Section
from analysis.render.figures import histogram
from analysis.render.text import attribute, number
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.selection import names

if TYPE_CHECKING:
    from analysis.prompt import PromptCode

OVERVIEW = {"top": 10, "q9": 3, "q7": 3, "q5": 3, "q3": 3, "q1": 3, "random": 4, "near": 3}
GROUPS = {
    "overview": "Overview", "top": "Strongest", **{f"q{i}": f"Tenth {i}" for i in range(10, 0, -1)}, "random": "Random",
    "near": "Near misses",
}
N_ONE_GROUP = 50
NEAR, FAR = (16, 15), (64, 63)
"""Tokens before and after the peak: shown at first, and after widening."""
N_NEIGHBOURS = 10


@dataclass(frozen=True)
class Reading:
    """Display options shared by all features; bundles with the same options can be cached together."""

    group: str
    side: Side | None
    """Sign of the values; None picks each feature's own."""
    range: tuple[Side, float, float] | None
    """Side, and the range of |value| that examples come from."""
    code: "PromptCode | None" = None
    """An encoded text to show each feature's values on."""


def reading(sides: "tuple[Side, ...]", code: "PromptCode | None") -> Reading:
    """Display options from the URL."""
    asked = st.query_params
    side: Side | None = next((one for one in sides if one == asked.get("side")), None)
    group = asked.get("group", "overview")
    return Reading(group if group in GROUPS else "overview", side, _range(sides), code)


def _range(sides: "tuple[Side, ...]") -> tuple[Side, float, float] | None:
    parts = st.query_params.get("range", "").split("~")
    side = next((one for one in sides if one == parts[0]), None)
    if len(parts) != 3 or side is None:
        return None
    try:
        low, high = float(parts[1]), float(parts[2])
    except ValueError:
        return None
    return (side, low, high) if 0 <= low <= high < float("inf") else None


def bundle(place: CurrentFeature, read: Reading) -> dict[str, Any]:
    """One feature for the browser: numbers, texts and trusted HTML with all text escaped."""
    feature, name = place.index.feature(place.feature), names(place.chosen)[place.feature]
    automatic = next((one for one in place.labels.every(place.feature) if one.author == "auto"), None)
    tried, value = _tried(place, feature, read)
    return {
        "feature": place.feature, "title": named.text(name, limit=60), "automatic": automatic.text if automatic else "",
        "verdict": _verdict(automatic) if automatic else "", "written": asdict(place.labels.written(place.feature)),
        "side": _side(place, feature, value), "examples": _examples(place, feature, read), "tried": tried,
    }


def _verdict(automatic: Label) -> str:
    """The automatic label's score in a few words."""
    origin = "label by a language model" if automatic.model else "automatic label"
    by = f"By {attribute(automatic.model, spaces=False, limit=200)}. " if automatic.model else ""
    if automatic.score is None:
        return f'<span class="sx-quiet" title="{by}">{origin}, not scored</span>'
    beside = "" if automatic.baseline is None else f", another feature’s label {automatic.baseline:.2f}"
    title = f"{by}Balanced accuracy on {len(automatic.judged)} held-out examples{beside}; see the Label tab"
    return f'<span class="sx-quiet" title="{title}">{origin}, {automatic.score:.2f}</span>'


def _side(place: CurrentFeature, feature: Feature, value: float | None) -> str:
    """Left column: top tokens, histogram (with the tried text's value), neighbours, promoted tokens."""
    parts = ['<h2 class="sx-hidden">Overview</h2>', drawn.firing(feature, place.index.fires_on(place.feature))]
    if not feature.dead:
        kinds = [(log_x, log_y) for log_y in (False, True) for log_x in (True, False)]
        drawn_each = [histogram.svg(feature, log_x=log_x, log_y=log_y, mark=value, marked="your text")
                      for log_x, log_y in kinds]
        drawings = "".join(f'<div class="sx-drawn sx-drawn-{i}">{svg}</div>' for i, svg in enumerate(drawn_each, start=1))
        parts.append(
            f'<h3>Values when active</h3>{drawings}<div class="sx-choices"><button data-toggle="logx">log values</button>'
            '<button data-toggle="logy">log counts</button>'
            f'<button data-png=".sx-histogram" data-name="feature-{place.feature}.png">PNG</button>'
            '<span class="sx-quiet">drag to see examples from a range</span></div>')
    beside = address.linker("compare", f=place.feature)
    for kind in ("decoder", "coactivation"):
        if found := place.index.neighbours(place.feature, kind)[:N_NEIGHBOURS]:
            parts.append(f'<div class="sx-near">{drawn.neighbours(kind, found, names(place.chosen), place.go, _to(beside))}'
                         "</div>")
    return "".join(parts) + (drawn.promoted(feature) if not feature.dead else "")


def _to(beside: Any) -> Any:
    return lambda other: beside(**{"with": other})


def _examples(place: CurrentFeature, feature: Feature, read: Reading) -> str:
    """Display options, legend and groups of examples."""
    if feature.dead:
        return drawn.empty(feature)
    side: Side = read.side or ("-" if feature.max <= 0 else "+")
    sections = [_in_range(place, *read.range)] if read.range else _groups(place, side, read.group)
    rows = "".join(drawn.group(section, feature, reach=NEAR) for section in sections if section.examples)
    scale = tokens.legend(max(abs(feature.max), abs(feature.min)), signed=place.index.signed)
    return f"{_choices(place, side, read)}{scale}{rows or drawn.empty(feature)}"


def _groups(place: CurrentFeature, side: Side, group: str) -> list[Section]:
    wanted = OVERVIEW if group == "overview" else {group: N_ONE_GROUP}
    return sections(place.index, place.feature, side, wanted)


def sections(index: Index, feature: int, side: Side, wanted: Mapping[str, int]) -> list[Section]:
    """A feature's example groups; `wanted` maps group names to the maximum number of examples."""
    about = {one.name: one for one in index.groups(feature, side)}
    return [Section(side, about[name], index.examples(feature, name, side, n, *FAR)) for name, n in wanted.items()]


def _in_range(place: CurrentFeature, side: Side, low: float, high: float) -> Section:
    n, found = place.index.between(place.feature, low, high, side, N_ONE_GROUP, *FAR)
    return Section(side, Group("range", low, high, n), found)


def _choices(place: CurrentFeature, side: Side, read: Reading) -> str:
    groups = _select("group", "Group", GROUPS, read.group, "overview")
    sides = _select("side", "Side", {"+": "+ positive", "-": "− negative"}, side, "") if place.index.signed else ""
    ranged = ""
    if read.range:
        low, high = (number(end) for end in read.range[1:])
        sign = "−" if read.range[0] == "-" else ""
        ranged = f'<button data-set="range=">{sign}{low} to {sign}{high} ✕</button>'
    toggles = "".join(f'<button data-toggle="{name}" title="{title}">{said}</button>' for name, said, title in (
        ("numbers", "values", "next to tokens (n)"), ("breaks", "line breaks", "as in the text (l)"),
        ("wide", "widen all", "or narrow (w); for one, click it")) if name == "numbers" or not place.index.of_images)
    return f'<div class="sx-choices">{groups}{sides}{ranged}{toggles}</div>'


def _select(key: str, title: str, choices: dict[str, str], chosen: str, default: str) -> str:
    options = "".join(
        f'<option value="{name}"{" selected" if name == chosen else ""}>{escape(said)}</option>'
        for name, said in choices.items())
    return f'<select data-choose="{key}" data-default="{default}" aria-label="{title}">{options}</select>'


def _tried(place: CurrentFeature, feature: Feature, read: Reading) -> tuple[str, float | None]:
    """The tried text as a heat map, and its largest value by magnitude."""
    if read.code is None:
        return "", None
    values = read.code.values(place.feature)
    strongest = float(values[abs(values).argmax()])
    scale = max(abs(feature.max), abs(feature.min), abs(strongest), 1e-9)
    at = f", up to {number(strongest)} on “{attribute(read.code.pieces[int(abs(values).argmax())])}”" if strongest else ""
    said = f"Fires on {int((values != 0).sum())} of {len(values)} tokens{at}."
    heat = tokens.heat(read.code.pieces, values.tolist(), scale=scale, focus_all=True)
    return f'<p class="sx-quiet">{said}</p><div data-tried="true">{heat}</div>', strongest or None
