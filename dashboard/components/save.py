"""Download buttons: the file is generated on click and sent to the browser with the page.

Streamlit's own button keeps a file on the server for the browser to fetch, and drops it after two more page draws by any
user. A browser that is busy drawing a figure may come too late.
"""

from collections.abc import Callable
from uuid import uuid4

import streamlit as st

from dashboard.escaping import plain
from sae.errors import SaescopeError

LARGEST = 100_000_000
"""Maximum file size in characters: the whole file passes through the page."""
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
    """A button that downloads a file.

    Args:
        label: text on the button.
        name: file name; its suffix sets the type.
        make: returns the file's text when the button is pressed; a `SaescopeError` is shown next to the button.
        help: tooltip.
    """
    key = f"save {label}"
    if not st.button(label, key=key, icon=":material/download:", help=help):
        return
    try:
        text = make()
        if len(text) > LARGEST:
            raise SaescopeError(f"{name} has {len(text):,} characters; the limit is {LARGEST:,}; choose fewer.")
    except SaescopeError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    kind = _KINDS[name.rpartition(".")[2]]
    _save(key=f"file {label}", data={"id": uuid4().hex, "name": name, "kind": kind, "text": text}, height="content")
