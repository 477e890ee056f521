"""Page header: the title and the run and index selectors, or what to do if there are no runs or indexes yet."""

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
    """Draw a page's title and, beside it, the run selector.

    Args:
        title: the page's title.

    Returns:
        The run (the URL's, else the newest), and the title's row, for further fields. Stops the page if there are no runs.
    """
    run = _current(title)
    return run, _row(title, run)


def _current(title: str) -> Run:
    """The URL's run; if it doesn't exist, another one, with a warning."""
    found = all_runs()
    run = chosen(found)
    if run is None:
        st.title(title)
        said = "No runs yet. Train one on this machine with:"
        frame.nothing(said, "sae train configs/quickstart.yaml", follow_runs=True)
    names = [one.name for one in found]
    asked = st.query_params.get("run")
    if asked is not None and asked not in names:
        st.warning(plain(f"There is no run “{asked}” in {runs_folder()}; showing {run.name}."), icon=":material/warning:")
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
    """Draw the page header (title, run, index) and open the index; stop the page if there is no readable index.

    Args:
        title: the page's title.
        bare: the page draws its own title and fields; draw them here only if there is nothing else to show.
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
        frame.nothing("Rebuild the index (labels are kept) with:", f"{command} --again{named}")
    if chosen_index.index.stale:
        st.warning(plain(f"This index is stale: {chosen_index.index.stale}"), icon=":material/history:")
    return replace(chosen_index, labels=_readable(chosen_index.labels))


def _readable(own: Labels) -> Labels:
    """The labels; none, with an error, if their file can't be read: features must still be shown."""
    try:
        readable(own)
    except SaescopeError as error:
        st.error(plain(f"Labels can't be shown or saved: {error}"), icon=":material/label_off:")
        return own.without_file(str(error))
    return own


def _no_index(run: Run, command: str) -> None:
    going = list((run.folder / "index").glob("*.partial")) if (run.folder / "index").is_dir() else []
    if going:
        _until_indexed(run.folder)
        frame.nothing(f"{run.name} is being indexed, or its indexing was interrupted; resume it with:", command)
    frame.unfinished(run, command)
    _until_indexed(run.folder)
    frame.nothing(f"{run.name} is trained but has no index yet. Build one with:", command)


@st.fragment(run_every=2.0)
def _until_indexed(folder: Path) -> None:
    """Redraw the page once the run has an index."""
    if indexes(folder):
        st.rerun()
