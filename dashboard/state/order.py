"""The list of features given by the URL's search, filter and sort: shown by the table, stepped through with j and k.

All pages share one order. A search sorts best first, until the table is sorted by a column.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.index.queries.conditions import condition
from dashboard.state import address
from dashboard.state.feature_statistics import statistics
from dashboard.state.search import Found, found
from dashboard.state.selection import Selection, names
from sae.errors import SaescopeError

KEYS = ("q", "by", "sort", "asc", "filter", "list", "box")
"""URL keys that define the list."""
N_PAGE = 50
"""Features per page of the table, which is plain HTML."""
MAPPED = ("map_x", "map_y")


@dataclass(frozen=True)
class Order:
    """An ordered list of features."""

    features: Sequence[int]
    sort: str
    """Name of a column; empty for a search's own order."""
    descending: bool
    problem: str | None = None
    """Error in the filter, which is then ignored, or in the search, which then finds nothing."""
    found: Found | None = None
    """Search results before filtering."""

    def page_of(self, feature: int | None) -> int:
        """The table page (from 1) that shows a feature; 1 if the feature isn't in the list."""
        return self.features.index(feature) // N_PAGE + 1 if feature in self.features else 1


def of(chosen: Selection, *, boxed: bool = True) -> Order:
    """The features that match the search and the filter, in order.

    Args:
        chosen: the run and its index.
        boxed: keep only features inside the box selection, if there is one.
    """
    searched, problem = None, None
    try:
        searched = found(chosen)
    except SaescopeError as error:
        searched, problem = Found([], ""), str(error)
    sort, descending = _sort(chosen, searched)
    where, wrong = _where(chosen, boxed)
    features = _sorted_by(chosen, sort, descending, where)
    listed = chosen.labels.lists().get(st.query_params.get("list", ""))
    for wanted in (listed, None if searched is None else searched.features):
        if wanted is not None:
            kept = set(wanted)
            features = [feature for feature in features if feature in kept]
    if not sort and searched is not None:
        place = {feature: i for i, feature in enumerate(searched.features)}
        features = sorted(features, key=place.__getitem__)
    return Order(features, sort, descending, problem or wrong, searched)


def _sort(chosen: Selection, searched: Found | None) -> tuple[str, bool]:
    """The URL's sort column and whether it is descending."""
    if searched is not None and "sort" not in st.query_params:
        return "", False
    sort = st.query_params.get("sort", "feature")
    if sort not in (*statistics(chosen).table.column_names, "label"):
        return "feature", False
    if sort == "feature":
        return sort, st.query_params.get("asc") == "false"
    return sort, st.query_params.get("asc", "false") != "true"


def _where(chosen: Selection, boxed: bool) -> tuple[str | None, str | None]:
    """The filter and the box as a DuckDB condition, and the filter's error, if any."""
    problem = None
    try:
        known = statistics(chosen)
        where = condition(st.query_params.get("filter", ""), known.table.column_names, known.texts)
    except SaescopeError as error:
        where, problem = None, str(error)
    return " AND ".join(filter(None, (where, _box(chosen) if boxed else None))) or None, problem


def _sorted_by(chosen: Selection, sort: str, descending: bool, where: str | None) -> Sequence[int]:
    numbers = range(chosen.index.d_sae)
    by = sort if sort not in ("", "label") else "feature"
    if by == "feature" and where is None:
        found_ones: Sequence[int] = list(reversed(numbers)) if descending and sort != "label" else numbers
    else:
        known = statistics(chosen)
        found_ones = _sorted(known.key, by, descending and sort != "label", where, known.stats)
    if sort != "label":
        return found_ones
    texts = names(chosen).labels
    labelled = sorted((f for f in found_ones if f in texts), key=lambda f: texts[f].casefold(), reverse=descending)
    return labelled + [f for f in found_ones if f not in texts]


def constant(chosen: Selection) -> frozenset[str]:
    """Statistics that are the same for all features: decoder norms, if training fixed them at 1."""
    return _constant(chosen.key, chosen.index)


@st.cache_resource(max_entries=64, show_spinner=False)
def _constant(key: tuple[str, ...], _index: Any) -> frozenset[str]:  # noqa: ARG001
    norms = _index.stats["decoder_norm"].drop_null().to_numpy()
    return frozenset({"decoder_norm"} if len(norms) and abs(norms - 1).max() < 1e-4 else ())


def rows(chosen: Selection, features: Sequence[int]) -> list[Mapping[str, Any]]:
    """Statistics of the given features, in the given order."""
    return statistics(chosen).table.take(list(features)).to_pylist()


def sort_link(order: Order, texts: Collection[str]) -> Callable[[str], str]:
    """A function that returns the URL to sort the table by a column, or to reverse its order if already sorted by it.

    Numbers start descending, columns in `texts` ascending.
    """
    here = address.linker(p=None)
    searched = order.found is not None  # a search has its own order

    def spell(column: str) -> str:
        first = column not in ("feature", "label", *texts)
        descending = not order.descending if column == order.sort else first
        plain = descending if column != "feature" else not descending
        return here(sort=None if column == "feature" and not descending and not searched else column,
                    asc=None if plain else "false" if column == "feature" else "true")

    return spell


def box() -> tuple[str, str, list[float]] | None:
    """The box selection in the scatter plot or map: two columns, and [x0, x1, y0, y1]."""
    parts = st.query_params.get("box", "").split("~")
    try:
        bounds = [float(part) for part in parts[2:]]
    except ValueError:
        return None
    return (parts[0], parts[1], bounds) if len(parts) == 6 else None


def _box(chosen: Selection) -> str | None:
    drawn = box()
    if drawn is None:
        return None
    x, y, (x0, x1, y0, y1) = drawn
    if not {x, y} <= set(statistics(chosen).table.column_names) or not all(map(_finite, (x0, x1, y0, y1))):
        return None
    return f'"{x}" BETWEEN {x0!r} AND {x1!r} AND "{y}" BETWEEN {y0!r} AND {y1!r}'


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


@st.cache_data(max_entries=64, show_spinner=False)
def _sorted(key: tuple[str, ...], sort: str, descending: bool, where: str | None, _stats: Any) -> list[int]:  # noqa: ARG001
    table = _stats.top(sort, descending, where, len(_stats.table), 0, ["feature"])
    found: list[int] = table["feature"].to_pylist()
    return found
