"""Keys and links: what happens between two runs of a page's script, in the browser.

Pages are HTML with ordinary links, and an ordinary link makes a Streamlit page begin anew. This component catches the
clicks on links within the dashboard and hands Python the address, which then redraws only what has changed; a link in a
new tab, or without scripts, still works. It also listens to keys, walks between the tokens of a heat map, shows a list
of all keys, copies, and saves drawings as PNG, none of which needs the server.

It keeps the address whole: what the page has settled on is added to it in place, and the links to other pages carry the
selection of the address as it is when they are used, with what the page itself was left with in this tab.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.state import address

KEYS = {
    "?": "this list", "/": "search", "j  →": "next feature", "k  ←": "previous feature",
    "r": "a random feature", "b": "all features", "e": "edit the label", "Esc": "leave a field, close a list",
    "Tab, then ← →": "from token to token of an example", "Enter": "widen or narrow that example",
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
    """Put the component on a page, once, inside the fragment that is to be redrawn.

    A link changes the URL and redraws the page or the fragment.

    Args:
        keys: what a key leads to, as an address.
        walk: addresses in order, of which j and k (and → and ←) take the next and the previous.
        at: which of them is shown now.
        title: of the browser's tab, before the page's and the run's.
        point: where a point of a figure leads, an address to which its `customdata` is added.
        more: keys that the page itself listens to, and what they do.
    """
    data = {
        "keys": dict(keys or {}), "walk": list(walk), "at": at, "help": {**KEYS, **(more or {})}, "title": title,
        "point": point, "heard": st.session_state.get("_heard"),
        "settled": address.settled(), "here": address.link(), "selection": address.SELECTION,
        "ofRun": address.OF_RUN, "ofFeature": address.OF_FEATURE,
    }
    _navigation(key="navigation", data=data, height="content", on_to_change=_arrived)


def _arrived() -> None:
    """A link was followed, or a key pressed that stands for one."""
    event: Any = st.session_state["navigation"].to
    if event:
        st.session_state["_heard"] = event["id"]
        address.follow(event["search"])
