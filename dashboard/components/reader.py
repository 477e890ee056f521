"""The Feature page in the browser: a reader that caches the features around the current one, and unsaved edits.

Stepping to a cached feature, showing values and line breaks, widening examples and selecting a range of the histogram
don't wait for the server. The reader draws at once, then notifies Python, which updates the URL and sends more features;
messages are numbered, so that late answers are ignored. It consists of four parts, because native Streamlit elements lie
between them.

Edits stay in the browser tab until Python confirms that they are saved: `saves` repeats each until it is acknowledged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import streamlit as st

from analysis.labels.editing import Conflict, Written
from analysis.labels.store import Labels
from dashboard.state import address
from sae.errors import SaescopeError

Part = Literal["side", "try", "examples"]

TABS = {"examples": "Examples", "with": "Fires with", "steer": "Steer", "statistics": "Statistics", "label": "Label",
        "export": "Export"}
KEYS = {
    "j  →": "next feature", "k  ←": "previous feature", "e": "edit the label", "s": "star", "t": "try a text",
    "n": "show values next to tokens", "l": "line breaks", "w": "widen or narrow all examples",
    "Enter": "in the label: save; on a token: widen or narrow its example",
}
_BAR = f"""<div class="sx sx-reader">
<div class="sx-bar-row">
<h1 data-is="heading"></h1>
<select data-is="run" aria-label="Run"></select><select data-is="index" aria-label="Index"></select>
<span class="sx-steps">
<button data-is="previous" data-act="previous" title="previous (k)" aria-label="previous feature">‹</button>
<input data-is="number" type="number" min="0" aria-label="Feature">
<button data-is="next" data-act="next" title="next (j)" aria-label="next feature">›</button></span>
<button data-act="random" title="random feature (r)">random</button>
<a data-is="every" data-page="features">all features</a>
<span data-is="where"></span>
<button data-is="star" data-act="star" title="star (s)" aria-label="star">☆</button>
<button data-act="link">copy link</button>
</div>
<div class="sx-bar-row">
<input data-is="label" aria-label="Label" maxlength="1000">
<span data-is="verdict"></span>
<button data-is="save" data-act="save">Save</button><button data-is="discard" data-act="discard">Discard</button>
<span data-is="said" role="status"></span><span data-is="drafts"></span>
<details class="sx-more"><summary data-is="more">Notes and lists</summary><div>
<div><label>Notes<textarea data-is="note" maxlength="100000"></textarea></label>
<label>Tags, separated by commas<input data-is="tags"></label></div>
<div><span>Lists</span><div data-is="lists"></div>
<label>New list<input data-is="newlist" maxlength="200" placeholder="name, then Enter"></label></div>
</div></details>
</div>
<div data-is="conflict" role="alert" hidden></div>
<div class="sx-hidden" role="status" data-is="status"></div>
<div class="sx-tabs" role="tablist" aria-label="Sections">{"".join(
    f'<button role="tab" data-tab="{name}">{title}</button>' for name, title in TABS.items())}</div>
</div>"""
_TRY = """<div class="sx sx-reader"><form>
<input aria-label="Try a text" maxlength="4000" placeholder="Try a text: where does this feature fire?  ( t )">
<button>Try</button><button type="button" data-is="clear" data-act="clear" hidden>Clear</button></form>
<p data-is="wait" role="status" class="sx-quiet"></p><div data-is="tried"></div></div>"""
_FILES = Path(__file__).parent
_JS, _CSS = ((_FILES / f"reader.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
_EMPTY = '<div class="sx sx-reader"></div>'
_PART = """export default function ({ data, parentElement }) {
  const element = parentElement.querySelector(".sx-reader");
  (globalThis.saescopeParts ??= new Map()).set(data.part, element);
  globalThis.saescopeReader?.draw(data.part);
}"""
_bar = st.components.v2.component("saescope_reader_bar", html=_BAR, js=_JS, css=_CSS, isolate_styles=False)
_PARTS = {
    name: st.components.v2.component(f"saescope_reader_{name}", html=html, js=_PART, isolate_styles=False)
    for name, html in {"try": _TRY, "side": _EMPTY, "examples": _EMPTY}.items()
}


def bar(shown: Mapping[str, Any], labels: Labels) -> None:
    """The main part, which receives the features; the other parts show what it holds.

    Args:
        shown: input of `reader.js`; see `dashboard.views.feature.page`.
        labels: the label store that edits are written to.
    """
    state = st.session_state
    state.setdefault("_reader", uuid4().hex)
    data = {
        **shown, "session": state["_reader"], "n": state.get("_reader n", 0),
        "saved": state.get("_reader saved", []),
    }
    _bar(key="reader", data=data, height="content", on_to_change=lambda: _told(labels))


def part(name: Part) -> None:
    """Another part, which draws what `bar` received."""
    _PARTS[name](key=f"reader {name}", data={"part": name}, height="content")


def held(stamp: str) -> frozenset[int]:
    """The features drawn under this stamp that the browser has cached."""
    told: Mapping[str, Any] = st.session_state.get("_reader told", {})
    return frozenset(told["have"]) if told.get("stamp") == stamp else frozenset()


def _told(labels: Labels) -> None:
    """Handle a message from the browser: its current feature, its cache and the edits to save."""
    if "reader" not in st.session_state:
        return  # another page is open by now; the browser resends its edits when it returns
    event: Any = st.session_state["reader"].to
    if not event:
        return
    state = st.session_state
    state["_reader told"], state["_reader n"] = {"stamp": event["stamp"], "have": event["have"]}, event["n"]
    state["_reader saved"] = answers(labels, event["saves"], state.get("_reader saved", []))
    if event["to"]:
        address.follow(event["to"])


def answers(
    labels: Labels, saves: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] = ()
) -> list[Mapping[str, Any]]:
    """Save each edit and return the outcomes; edits answered before are not repeated.

    Args:
        labels: the label store that edits are written to.
        saves: the edits, each with `id`, `feature`, `before` and `after`.
        before: earlier answers.
    """
    known = {answer["id"]: answer for answer in before}
    return [known.get(save["id"]) or {"id": save["id"], "feature": save["feature"], **_kept(labels, save)}
            for save in saves]


def _kept(labels: Labels, save: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"written": asdict(labels.change(save["feature"], _state(save["before"]), _state(save["after"])))}
    except Conflict as conflict:
        return {"fields": list(conflict.fields), "theirs": asdict(conflict.theirs)}
    except SaescopeError as error:
        return {"error": str(error)}


def _state(said: Mapping[str, Any]) -> Written:
    return Written(str(said["label"]), str(said["note"]), tuple(map(str, said["tags"])), tuple(map(str, said["lists"])))
