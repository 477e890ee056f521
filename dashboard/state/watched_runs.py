"""What the pages know of runs/, kept up to date: a run is read again when its files have changed, and only then."""

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
    """Every run as it is now, the most recently written first."""
    root = runs_folder()
    return runs.newest_first([_read(root, folder, runs.stamp(folder)) for folder in runs.folders(root)])


def chosen(found: list[Run]) -> Run | None:
    """The run that the URL names; else the newest with an index, or that has finished, which links carry from now on."""
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
    """Draw the page again as soon as a run changes, appears, ends or falls silent. Call it once, at the page's end.

    Args:
        seen: the runs as the page has drawn them.
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
