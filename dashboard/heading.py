"""The head of a page: its title and the fields that select a run and an index; or what to do where there is none yet."""

from dataclasses import replace
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis.index import indexes
from analysis.labels.store import Labels
from analysis.runs import Run
from dashboard import frame
from dashboard.escaping import plain, shell, visible
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.state.selection import Selection, of_run, readable
from dashboard.state.watched_runs import all_runs, chosen
from sae.errors import SaescopeError


def head(title: str) -> tuple[Run, DeltaGenerator]:
    """A page's title and, beside it, the run that the URL names, or the newest, with a field to choose another.

    Args:
        title: of the page.

    Returns:
        The run, and the row of the title, for further fields. The page is stopped where there is no run.
    """
    run = _current(title)
    return run, _row(title, run)


def _current(title: str) -> Run:
    """The run that the URL names, or another, which is said above the page."""
    found = all_runs()
    run = chosen(found)
    if run is None:
        st.title(title)
        said = "No runs yet. This trains one on this machine:"
        frame.nothing(said, "sae train configs/quickstart.yaml", follow_runs=True)
    names = [one.name for one in found]
    asked = st.query_params.get("run")
    if asked is not None and asked not in names:
        st.warning(plain(f"There is no run “{asked}” in {runs_folder()}; this is {run.name}."), icon=":material/warning:")
    return run


def _row(title: str, run: Run) -> DeltaGenerator:
    names = [one.name for one in all_runs()]
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="head")
    row.title(title, width="content")
    row.selectbox(
        "Run", names, **address.choice("run", names, default=run.name, clears=address.OF_RUN), width=320,
        format_func=visible)
    return row


def choose(title: str, *, bare: bool = False) -> Selection:
    """The page's head: title, run and index; stops the page where there is no index to show.

    Args:
        title: of the page.
        bare: draw no title and no fields, as the page does so itself; but do where there is nothing else to show.
    """
    run = _current(title)
    names = [folder.name for folder in indexes(run.folder)]
    row = None if bare and names else _row(title, run)
    asked = st.query_params.get("index", "")
    name = asked if asked in names else names[0] if names else ""
    if row is not None and len(names) > 1:
        name = row.selectbox("Index", names, width=200, **address.choice("index", names, default=names[0], clears=("p",)))
    if len(names) > 1 and asked != name:
        address.settle("index", name)
    command = f"sae index {shell(run.folder)}"
    if not names:
        _no_index(run, command)
    folder = run.folder / "index" / name
    try:
        chosen_index = of_run(run, folder)
    except SaescopeError as error:
        if row is None:
            _row(title, run)
        st.error(plain(str(error)), icon=":material/error:")
        named = "" if name == "default" else f" --name {shell(Path(name))} corpus.sources=…"
        frame.nothing("This makes the index anew; labels are kept:", f"{command} --again{named}")
    if chosen_index.index.stale:
        st.warning(plain(f"This index is stale: {chosen_index.index.stale}"), icon=":material/history:")
    return replace(chosen_index, labels=_readable(chosen_index.labels))


def _readable(own: Labels) -> Labels:
    """The labels, or, said above the page, none where their file cannot be read: it must not hide the features."""
    try:
        readable(own)
    except SaescopeError as error:
        st.error(plain(f"Labels are neither shown nor kept: {error}"), icon=":material/label_off:")
        return own.without_file(str(error))
    return own


def _no_index(run: Run, command: str) -> None:
    going = list((run.folder / "index").glob("*.partial")) if (run.folder / "index").is_dir() else []
    if going:
        _until_indexed(run.folder)
        frame.nothing(f"An index of {run.name} is being made, or was interrupted; this goes on where it was:", command)
    frame.unfinished(run, command)
    _until_indexed(run.folder)
    frame.nothing(f"{run.name} is trained but has no index yet. This makes one:", command)


@st.fragment(run_every=2.0)
def _until_indexed(folder: Path) -> None:
    """Draw the page again once the run has an index."""
    if indexes(folder):
        st.rerun()
