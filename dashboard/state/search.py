"""Run the URL's search: features by label, by the text they fire on, or by a prompt, best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from analysis.index.queries import firing
from analysis.index.types import Hit
from analysis.render.feature import percent
from analysis.render.text import count, number
from dashboard.state.model_results import encoded
from dashboard.state.selection import Selection

BY = {"label": "labels, notes, tags", "text": "text", "regex": "regular expression", "prompt": "prompt"}
N_FOUND = 100
"""Maximum number of features returned by a text or prompt search."""
CUT = 0.1
"""Features denser than this are left out of a prompt's ranking: they fire on any text."""
N_PLACES = 2000
"""Maximum number of matches used to rank features; if there are more, an evenly spaced sample."""


@dataclass(frozen=True)
class Found:
    """Search results, best first."""

    features: Sequence[int]
    said: str
    """How they were found, as shown on the page."""
    why: Mapping[int, str] = field(default_factory=dict)
    """A text per feature for an extra column; may be empty."""
    why_title: str = ""
    hits: Sequence[Hit] = ()
    """Matches in the texts."""


def found(chosen: Selection) -> Found | None:
    """Run the search; None if the URL has none.

    Raises:
        SaescopeError: an invalid regular expression, an index without text, or a run without a model.
    """
    text, by = st.query_params.get("q", ""), st.query_params.get("by", "label")
    if not text.strip():
        return None
    if by == "prompt":
        return _in_prompt(chosen, text)
    if by in ("text", "regex"):
        return _in_texts(chosen.key, text, by == "regex", chosen.index)
    matches = list(dict.fromkeys(match.feature for match in chosen.labels.search(text)))
    return Found(matches, f"labels, notes and tags with “{text}”")


def _in_prompt(chosen: Selection, text: str) -> Found:
    from analysis.prompt import own_maximum, rarer_than

    code = encoded(chosen.run.folder, text, chosen.index.refine)
    top = code.ranked(own_maximum(chosen.index), rarer_than(chosen.index, CUT), N_FOUND)
    return Found(
        [one.feature for one in top],
        f"the {len(top)} features closest to their maximum on this prompt, without those that fire on more than "
        f"{percent(CUT)} of tokens",
        {one.feature: f"{number(one.value)}, {one.share:.0%}" for one in top}, "In the prompt, % of max")


@st.cache_resource(max_entries=64, show_spinner="Searching the texts …")
def _in_texts(key: tuple[str, ...], text: str, regex: bool, _index: Any) -> Found:  # noqa: ARG001
    hits, total = _index.search_evenly(text, regex=regex, n=N_PLACES)
    fires = firing.at_hits(_index, hits, N_FOUND)
    part = f"an even sample of {len(hits):,} of " if len(hits) < total else "all "
    return Found(
        [one.feature for one in fires],
        f"features that fire on this text and rarely elsewhere, from {part}{count(total, 'occurrence')}",
        {one.feature: f"{one.n_hits:,} of {len(hits):,}, up to {number(one.value)}" for one in fires}, "There", hits)
