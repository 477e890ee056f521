"""Per-feature statistics of the selection: those of the index, plus per-feature results of evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from analysis.evals.common import features
from analysis.evals.common.result import PerFeature
from analysis.index.queries.conditions import TEXTS
from analysis.index.queries.table import Stats
from dashboard.state.selection import Selection, stamp
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Statistics:
    """One row per feature."""

    stats: Stats
    measured: Mapping[str, PerFeature]
    """Columns added by evaluations, by name."""
    key: tuple[str, ...]
    """Cache key: differs if the statistics differ."""

    @property
    def table(self) -> pa.Table:
        """The table of statistics."""
        return self.stats.table

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns."""
        return (*TEXTS, *(name for name, one in self.measured.items() if isinstance(one.values, tuple)))


def statistics(chosen: Selection) -> Statistics:
    """Statistics of a run and its index; evaluations are included if their weights match the index's."""
    files = features.tables(chosen.run.folder)
    key = (*chosen.key, *(str(part) for path in files for part in (path, *stamp(path))))
    return _statistics(key, files, chosen.index)


@st.cache_resource(max_entries=8, show_spinner=False)
def _statistics(key: tuple[str, ...], files: list[Path], _index: Any) -> Statistics:
    table = _index.stats
    measured: dict[str, PerFeature] = {}
    weights = _index.manifest["made_from"].get("weights_sha256")
    for path in files:
        try:
            found, of = features.read(path)
        except SaescopeError:  # `sae eval` rewrites it; the index works without it
            continue
        if of == weights:
            measured |= {name: one for name, one in found.items() if len(one.values) == len(table)
                         and name not in table.column_names}
    for name, one in measured.items():
        table = table.append_column(name, features.column(one))
    return Statistics(Stats(table), measured, key)
