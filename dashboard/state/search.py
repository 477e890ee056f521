"""What the search of the URL finds: features by their labels, by the text they fire on, or by a prompt; the best first."""

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
"""Features that a search in texts, or a prompt, finds at most."""
CUT = 0.1
"""Density above which a feature is left out of a prompt's ranking: it fires on any text."""
N_PLACES = 2000
"""Places in the texts that features are ranked by at most; of more an even sample."""


@dataclass(frozen=True)
class Found:
    """Features, the best first."""

    features: Sequence[int]
    said: str
    """Where they come from, in a sentence."""
    why: Mapping[int, str] = field(default_factory=dict)
    """A text each, for a column of its own; empty where there is nothing to say."""
    why_title: str = ""
    hits: Sequence[Hit] = ()
    """Places in the texts."""


def found(chosen: Selection) -> Found | None:
    """What is found; None where nothing is searched for.

    Raises:
        SaescopeError: an expression that is none, an index without text, a run without a model.
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
        f"the {len(top)} features of this prompt that are nearest to their own maximum, without those that fire on over "
        f"{percent(CUT)} of the tokens",
        {one.feature: f"{number(one.value)}, {one.share:.0%}" for one in top}, "In the prompt, of its maximum")


@st.cache_resource(max_entries=64, show_spinner="Searching the texts …")
def _in_texts(key: tuple[str, ...], text: str, regex: bool, _index: Any) -> Found:  # noqa: ARG001
    hits, total = _index.search_evenly(text, regex=regex, n=N_PLACES)
    fires = firing.at_hits(_index, hits, N_FOUND)
    part = f"an even sample of {len(hits):,} of its " if len(hits) < total else "all its "
    return Found(
        [one.feature for one in fires],
        f"features that fire where this stands and seldom elsewhere, by {part}{count(total, 'place')}",
        {one.feature: f"{one.n_hits:,} of {len(hits):,}, to {number(one.value)}" for one in fires}, "There", hits)
