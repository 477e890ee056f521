"""The page Circuits: which features make which others fire, one graph a prompt."""

import streamlit as st

from analysis.render.tables import plain
from dashboard import escaping, frame
from dashboard.components.navigation import navigation
from dashboard.settings import runs_folder


def page() -> None:
    """Draw the page."""
    st.title("Circuits")
    # beside the runs, because a circuit spans several of them
    folder = runs_folder().absolute().parent / "circuits"
    found = sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        said = f"No circuits yet (folder: {escaping.shell(folder)}). This finds a first one:"
        frame.nothing(said, "make circuit-demo")
    navigation()
    st.html(plain.table(["circuit"], [[name] for name in found], caption="Circuits"))
