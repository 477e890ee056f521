"""The run and the index that the URL names, open; or what to do where they are missing, broken or not ready yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.index import Index, indexes, open_index
from analysis.labels.store import Labels
from analysis.runs import Run, flat
from dashboard import frame
from dashboard.state import address
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Chosen:
    """What a page shows features of."""

    run: Run
    index: Index
    labels: Labels

    @property
    def key(self) -> tuple[str, ...]:
        """Another value for another index or the same one made anew."""
        return (str(self.index.folder), *map(str, _stamp(self.index.folder / "manifest.json")))


def choose(title: str) -> Chosen:
    """The page's head: title, run and index; stops the page where there is no index to show.

    Args:
        title: of the page.
    """
    run, row = frame.head(title)
    names = [folder.name for folder in indexes(run.folder)]
    name = names[0] if names else ""
    if len(names) > 1:
        name = row.selectbox("Index", names, width=200, **address.choice("index", names, default=names[0], clears=("p",)))
    command = f"sae index {frame.shell(run.folder)}"
    if not names:
        _no_index(run, command)
    folder = run.folder / "index" / name
    try:
        index = _open(folder, _stamp(folder / "manifest.json"))
        labels = _labels(run.folder, _stamp(run.folder / "final" / "sae.json"))
    except SaescopeError as error:
        st.error(frame.plain(str(error)), icon=":material/error:")
        frame.nothing("This makes the index anew; labels are kept:", f"{command} --again")
    if index.stale:
        st.warning(frame.plain(f"This index is stale: {index.stale}"), icon=":material/history:")
    return Chosen(run, index, labels)


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


def provenance(chosen: Chosen) -> dict[str, str]:
    """What the page's numbers were made from, one line a fact."""
    manifest: dict[str, Any] = chosen.index.manifest
    wanted = {key: manifest.get(key, {}) for key in ("about", "counts", "made_from", "notes")}
    facts = {"run": chosen.run.name, "index": frame.shell(chosen.index.folder), "code": str(manifest.get("code", "–"))}
    facts |= {key: value for key, value in flat(wanted).items() if value not in ("null", "{}")}
    return facts | {f"config.{key}": value for key, value in flat(chosen.run.config).items()}


def names(chosen: Chosen) -> dict[int, str]:
    """Labels by feature, read again when their file has changed."""
    labels = chosen.labels
    return _names(str(labels.path), labels.weights, labels.stamp(), labels)


@st.cache_resource(max_entries=64, show_spinner=False)
def _names(path: str, weights: str, stamp: tuple[int, ...], _labels: Labels) -> dict[int, str]:  # noqa: ARG001
    return _labels.names()


@st.cache_resource(max_entries=8, show_spinner=False)
def _open(folder: Path, stamp: tuple[int, int]) -> Index:  # noqa: ARG001 (an index made anew is a new entry)
    index = open_index(folder)
    _ = index.stats  # a damaged table is said now
    return index


@st.cache_resource(max_entries=64, show_spinner=False)
def _labels(run: Path, stamp: tuple[int, int]) -> Labels:  # noqa: ARG001
    return Labels(run)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
