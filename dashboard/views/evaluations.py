"""The page Evaluations: the figures that were measured on a run, one table an evaluation."""

import streamlit as st

from analysis import runs
from analysis.render.tables import plain as tables
from dashboard import escaping, frame, heading
from dashboard.components.navigation import navigation
from sae.errors import SaescopeError
from sae.io.files import read_json


def page() -> None:
    """Draw the page."""
    chosen, _ = heading.head("Evaluations")
    command = f"sae eval {escaping.shell(chosen.folder)}"
    files = sorted((chosen.folder / "evals").glob("*.json"))
    if not files:
        frame.unfinished(chosen, command)
        where = escaping.shell(chosen.folder / "evals")
        frame.nothing(f"No evaluations of {chosen.name} yet. This makes them, in {where}:", command)
    navigation()
    for file in files:
        st.subheader(escaping.plain(file.stem))
        try:
            rows = [[key, value] for key, value in runs.flat(read_json(file)).items()]
        except SaescopeError as error:
            st.error(escaping.plain(str(error)), icon=":material/error:")
            continue
        st.html(tables.table(["figure", "value"], rows, caption=f"Evaluation {file.stem}"))
