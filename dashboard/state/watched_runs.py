"""The runs in runs/, kept up to date: a run is reread only when its files change."""

import time
from collections.abc import Hashable
from pathlib import Path

import streamlit as st

from analysis import runs
from analysis.index import indexes
from analysis.runs import Run
from dashboard.settings import runs_folder
from dashboard.state import address

POLL_S = 2.0


def all_runs() -> list[Run]:
    """All runs in their current state, most recently updated first."""
    root = runs_folder()
    return runs.newest_first([_read(root, folder, runs.stamp(folder)) for folder in runs.folders(root)])


def chosen(found: list[Run]) -> Run | None:
    """The URL's run; else the newest indexed one, else the newest finished one, else the newest. Links then carry it."""
    asked = st.query_params.get("run")
    named = next((run for run in found if run.name == asked), None)
    first = (run for rule in (_indexed, _finished, bool) for run in found if rule(run))
    run = named or next(first, None)
    if run is not None and named is None:
        address.settle("run", run.name)
    return run


def _indexed(run: Run) -> bool:
    return bool(indexes(run.folder))


def _finished(run: Run) -> bool:
    return run.finished


@st.cache_resource(max_entries=1024, show_spinner=False)
def _read(root: Path, folder: Path, stamp: tuple[int, ...]) -> Run:  # noqa: ARG001 (a changed stamp is a new entry)
    return runs.read(root, folder)


def follow(seen: list[Run]) -> None:
    """Redraw the page when a run appears, changes, ends or stops reporting. Call it once, at the end of the page.

    Args:
        seen: the runs as drawn on the page.
    """
    st.session_state["_seen"] = _state(seen)
    _watch()


@st.fragment(run_every=POLL_S)
def _watch() -> None:
    if _state(all_runs()) != st.session_state.get("_seen"):
        st.rerun()


def _state(found: list[Run]) -> Hashable:
    now = time.time()
    return tuple((run.name, run.updated, len(run.lines), run.status(now)) for run in found)
