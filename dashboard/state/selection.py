"""The selected run, its open index and its labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.index import Index, open_index
from analysis.labels.names import Names
from analysis.labels.store import Labels
from analysis.runs import Run, flat, section
from dashboard.escaping import shell


@dataclass(frozen=True)
class Selection:
    """The run, index and labels that a page shows."""

    run: Run
    index: Index
    labels: Labels

    @property
    def key(self) -> tuple[str, ...]:
        """Cache key: changes with the index and when it is rebuilt."""
        return (str(self.index.folder), *map(str, stamp(self.index.folder / "manifest.json")))

    @property
    def has_own_module(self) -> bool:
        """Whether contexts are inputs of the user's own module."""
        sources = self._about("corpus")
        own = [one.get("source") for one in section(self.run.config, "corpus").get("sources", []) if isinstance(one, dict)]
        return sources == own and str(sources[0]).startswith("module:")

    @property
    def reads_text(self) -> bool:
        """Whether there is a language model to run texts through."""
        return self._about("model") is not None

    def _about(self, key: str) -> Any:
        return self.index.manifest.get("about", {}).get(key)


def of_run(run: Run, folder: Path) -> Selection:
    """A run with one of its indexes opened.

    Raises:
        SaescopeError: the index cannot be read.
    """
    index = opened(folder, stamp(folder / "manifest.json"))
    return Selection(run, index, labels(run.folder, stamp(run.folder / "final" / "sae.json")))


def provenance(chosen: Selection) -> dict[str, str]:
    """Provenance of the page's numbers: name → value."""
    manifest: dict[str, Any] = chosen.index.manifest
    wanted = {key: manifest.get(key, {}) for key in ("about", "counts", "made_from", "notes")}
    facts = {"run": chosen.run.name, "index": shell(chosen.index.folder), "code": str(manifest.get("code", "–"))}
    facts |= {key: value for key, value in flat(wanted).items() if value not in ("null", "{}")}
    return facts | {f"config.{key}": value for key, value in flat(chosen.run.config).items()}


def names(chosen: Selection) -> Names:
    """Each feature's name: its label, else the tokens it fires on. Labels are reread when they change."""
    labels = chosen.labels
    return Names(chosen.index, _names(str(labels.path), labels.weights, labels.stamp(), labels))


@st.cache_resource(max_entries=64, show_spinner=False)
def _names(path: str, weights: str, stamp: tuple[int, ...], _labels: Labels) -> dict[int, str]:  # noqa: ARG001
    return _labels.names()


def readable(own: Labels) -> None:
    """Raise SaescopeError if the label file can't be read; checked again when it changes."""
    _readable(str(own.path), own.stamp(), own)


@st.cache_resource(max_entries=64, show_spinner=False)
def _readable(path: str, stamp: tuple[int, ...], _labels: Labels) -> None:  # noqa: ARG001
    _labels.check()


@st.cache_resource(max_entries=8, show_spinner=False)
def opened(folder: Path, stamp: tuple[int, int]) -> Index:  # noqa: ARG001 (a rebuilt index is a new entry)
    """An index, kept open; `stamp` changes when it is rebuilt."""
    index = open_index(folder)
    _ = index.stats  # report a damaged table now
    return index


@st.cache_resource(max_entries=64, show_spinner=False)
def labels(run: Path, stamp: tuple[int, int]) -> Labels:  # noqa: ARG001
    """A run's labels; `stamp` changes when the run is retrained."""
    return Labels(run)


def stamp(path: Path) -> tuple[int, int]:
    """Size (bytes) and modification time (ns) of a file; (0, 0) if it doesn't exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
