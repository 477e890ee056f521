"""The features in the order and with the filter that the URL names: the table shows them, j and k walk through them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.index.queries.conditions import condition
from dashboard.state import address
from dashboard.state.selection import Selection, names
from sae.errors import SaescopeError

KEYS = ("sort", "asc", "filter", "list", "box")
"""Keys of the URL that make the order."""
MAPPED = ("map_x", "map_y")


@dataclass(frozen=True)
class Order:
    """Features in order."""

    features: Sequence[int]
    sort: str
    descending: bool
    problem: str | None = None
    """What is wrong with the filter, which then does nothing."""


def state() -> dict[str, Any]:
    """The part of the URL that makes the order, for links to another page that keep it."""
    return {key: st.query_params.get_all(key) for key in KEYS if key in st.query_params}


def of(chosen: Selection, only: Sequence[int] | None = None) -> Order:
    """All features that pass the filter, in order.

    Args:
        chosen: the run and its index.
        only: those that a search has found; None for all.
    """
    columns = chosen.index.stats.column_names
    sort = st.query_params.get("sort", "feature")
    descending = st.query_params.get("asc", "false") != "true" and sort != "feature"
    if sort == "feature":
        descending = st.query_params.get("asc") == "false"
    if sort not in (*columns, "label"):
        sort, descending = "feature", False
    problem = None
    try:
        where = condition(st.query_params.get("filter", ""), columns)
    except SaescopeError as error:
        where, problem = None, str(error)
    where = " AND ".join(filter(None, (where, _box(chosen)))) or None
    by = "feature" if sort == "label" else sort
    numbers = range(chosen.index.d_sae)
    if by == "feature" and where is None:
        found = list(reversed(numbers) if descending and sort != "label" else numbers)
    else:
        found = _sorted(chosen.key, by, descending and sort != "label", where, chosen.index)
    listed = chosen.labels.lists().get(st.query_params.get("list", ""))
    for wanted in (listed, only):
        if wanted is not None:
            kept = set(wanted)
            found = [feature for feature in found if feature in kept]
    if sort == "label":
        texts = names(chosen).labels
        labelled = sorted((f for f in found if f in texts), key=lambda f: texts[f].casefold(), reverse=descending)
        found = labelled + [f for f in found if f not in texts]
    return Order(found, sort, descending, problem)


def constant(chosen: Selection) -> frozenset[str]:
    """Statistics that tell nothing of any feature: decoder norms, where training has kept all of them at one."""
    return _constant(chosen.key, chosen.index)


@st.cache_resource(max_entries=64, show_spinner=False)
def _constant(key: tuple[str, ...], _index: Any) -> frozenset[str]:  # noqa: ARG001
    norms = _index.stats["decoder_norm"].drop_null().to_numpy()
    return frozenset({"decoder_norm"} if len(norms) and abs(norms - 1).max() < 1e-4 else ())


def rows(chosen: Selection, features: Sequence[int]) -> list[Mapping[str, Any]]:
    """The statistics of some features, in their order."""
    return chosen.index.stats.take(list(features)).to_pylist()


def sort_link(order: Order) -> Callable[[str], str]:
    """What spells the address at which the table is sorted by a column; the other way round if it is already."""
    here = address.linker(p=None)

    def spell(column: str) -> str:
        first = column not in ("feature", "label", "top_token", "promoted_token")
        descending = not order.descending if column == order.sort else first
        plain = descending if column != "feature" else not descending
        return here(sort=None if column == "feature" and not descending else column,
                    asc=None if plain else "false" if column == "feature" else "true")

    return spell


def box() -> tuple[str, str, list[float]] | None:
    """The box that was drawn in a scatter or the map: two columns and the bounds of x and of y."""
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
    if not {x, y} <= set(chosen.index.stats.column_names) or not all(map(_finite, (x0, x1, y0, y1))):
        return None
    return f'"{x}" BETWEEN {x0!r} AND {x1!r} AND "{y}" BETWEEN {y0!r} AND {y1!r}'


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


@st.cache_data(max_entries=64, show_spinner=False)
def _sorted(key: tuple[str, ...], sort: str, descending: bool, where: str | None, _index: Any) -> list[int]:  # noqa: ARG001
    table = _index.top(sort, descending, where, limit=_index.d_sae, columns=["feature"])
    found: list[int] = table["feature"].to_pylist()
    return found
