"""Downloads: a button, upon which the file is made and handed to the browser together with the page.

Streamlit's own button would leave a file on the server for the browser to fetch; the server throws such files away when
pages have been drawn twice since, by anybody, which a browser that is busy drawing a figure does not always outrun.
"""

from collections.abc import Callable
from uuid import uuid4

import streamlit as st

from dashboard.escaping import plain
from sae.errors import SaescopeError

LARGEST = 100_000_000
"""Characters of a file at most: all of it passes through the page."""
_JS = """
export default function ({ data }) {
  const saved = (globalThis.saescopeSaved ??= new Set());
  if (saved.has(data.id)) return;  // this function runs again whenever the page is drawn
  saved.add(data.id);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data.text], { type: data.kind }));
  link.download = data.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
"""
_save = st.components.v2.component("saescope_save", js=_JS, isolate_styles=False)
_KINDS = {"json": "application/json", "csv": "text/csv", "html": "text/html"}


def button(label: str, name: str, make: Callable[[], str], *, help: str | None = None) -> None:
    """A button that saves a file.

    Args:
        label: on the button.
        name: of the file; its ending says what it is.
        make: makes the file when the button is pressed; what it raises as a `SaescopeError` is said beside it.
        help: shown when the pointer rests on the button.
    """
    key = f"save {label}"
    if not st.button(label, key=key, icon=":material/download:", help=help):
        return
    try:
        text = make()
        if len(text) > LARGEST:
            raise SaescopeError(f"{name} has {len(text):,} characters and a page hands over {LARGEST:,}; take fewer.")
    except SaescopeError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    kind = _KINDS[name.rpartition(".")[2]]
    _save(key=f"file {label}", data={"id": uuid4().hex, "name": name, "kind": kind, "text": text}, height="content")
