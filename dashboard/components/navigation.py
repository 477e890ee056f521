"""Keyboard shortcuts and links, handled in the browser.

Pages are HTML with ordinary links, and following one would reload the whole Streamlit page. This component intercepts
clicks on links within the dashboard and sends the URL to Python, which redraws only what changed; links opened in a new
tab, or without JavaScript, still work. It also handles keys, moves between the tokens of a heat map, lists all keys,
copies text and saves figures as PNG, all without the server.

It keeps the URL complete: defaults chosen by the page are added in place, and links to other pages carry the selection
as it is at the time of the click, with that page's own state from its last visit in this tab.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.state import address

KEYS = {
    "?": "this list", "/": "search", "j  →": "next feature", "k  ←": "previous feature",
    "r": "random feature", "b": "all features", "e": "edit the label", "Esc": "leave a field, close a list",
    "Tab, then ← →": "move between an example's tokens", "Enter": "widen or narrow that example",
}
_HTML = """<dialog class="sx-keys" aria-label="Keys"></dialog>
<div class="sx-hidden" role="status" aria-live="polite"></div>"""
_navigation = st.components.v2.component(
    "saescope_navigation", html=_HTML,
    js=(Path(__file__).parent / "navigation.js").read_text(encoding="utf-8"), isolate_styles=False,
)


def navigation(
    *, keys: Mapping[str, str] | None = None, walk: Sequence[str] = (), at: int = 0, title: str = "", point: str = "",
    more: Mapping[str, str] | None = None,
) -> None:
    """Add the component to a page, once, inside the fragment to redraw.

    A link changes the URL and redraws the page or the fragment.

    Args:
        keys: key → the URL it opens.
        walk: URLs in order; j and k (and → and ←) go to the next and the previous.
        at: position of the current URL in `walk`.
        title: start of the browser tab's title, before the page and the run.
        point: URL prefix for a clicked point of a figure; its `customdata` is appended.
        more: key → help text, for keys that the page handles itself.
    """
    data = {
        "keys": dict(keys or {}), "walk": list(walk), "at": at, "help": {**KEYS, **(more or {})}, "title": title,
        "point": point, "heard": st.session_state.get("_heard"),
        "settled": address.settled(), "here": address.link(), "selection": address.SELECTION,
        "ofRun": address.OF_RUN, "ofFeature": address.OF_FEATURE,
    }
    _navigation(key="navigation", data=data, height="content", on_to_change=_arrived)


def _arrived() -> None:
    """A link was clicked or its key was pressed."""
    event: Any = st.session_state["navigation"].to
    if event:
        st.session_state["_heard"] = event["id"]
        address.follow(event["search"])
