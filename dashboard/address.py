"""The URL as the one place of a page's state: a link shows the same, and Back undoes a choice.

Streamlit's own binding of widgets to the URL replaces the entry in the browser's history, so that Back would leave the
page. Here a widget takes its value from the URL before it is drawn, and a changed one makes a new entry:

    st.toggle("log x", **address.flag("logx"))

A value that is missing from the URL, or that does not fit, is the default; the default is never written. What is drawn
as HTML changes the state by ordinary links: `link` spells the URL of a page as it would be after a choice.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import streamlit as st

RUNS = "runs"
N_CHARS = 4000
"""Longest text that the URL holds: browsers and proxies cut longer addresses."""


def flag(key: str, *, default: bool = False) -> dict[str, Any]:
    """Arguments of a widget for yes or no, `?key=true`."""
    return _bound(key, default, lambda texts: {"true": True, "false": False}[texts[-1]], lambda on: [str(on).lower()])


def number(key: str, low: float, high: float, *, default: float) -> dict[str, Any]:
    """Arguments of a widget for a number, `?key=0.5`; one outside `low` to `high` does not fit."""

    def read(texts: list[str]) -> float:
        value = float(texts[-1])
        if not low <= value <= high:
            raise ValueError(f"{value} lies outside {low} to {high}")
        return value

    return _bound(key, default, read, lambda value: [f"{value:g}"])


def integer(key: str, low: int, high: int, *, default: int, clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a widget for a whole number, `?key=5`; one outside `low` to `high` does not fit."""

    def read(texts: list[str]) -> int:
        value = int(texts[-1])
        if not low <= value <= high:
            raise ValueError(f"{value} lies outside {low} to {high}")
        return value

    return _bound(key, default, read, lambda value: [str(value)], clears)


def text(key: str, *, default: str = "", clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a widget for a text, `?key=some+words`, of at most `N_CHARS` characters."""
    return _bound(key, default, lambda texts: texts[-1][:N_CHARS], lambda value: [(value or "")[:N_CHARS]], clears)


def choice(key: str, options: Sequence[str], *, default: str, clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a widget for one of the options, `?key=a`; an unknown one does not fit.

    Args:
        key: name in the URL.
        options: what can be chosen.
        default: one of them.
        clears: further keys of the URL that a new choice makes meaningless.
    """

    def read(texts: list[str]) -> str:
        if texts[-1] not in options:
            raise ValueError(f"{texts[-1]} is not among the options")
        return texts[-1]

    return _bound(key, default, read, lambda value: [value], clears)


def several(key: str, options: Sequence[str]) -> dict[str, Any]:
    """Arguments of a widget for some of the options in the order of choice, `?key=a&key=b`; unknown ones are left out."""
    return _bound(key, [], lambda texts: [text for text in dict.fromkeys(texts) if text in options], list)


def page(names: Container[str]) -> str:
    """The page that the URL names, `?page=feature`; Runs if it names none that there is.

    Not a path, `/feature`: Streamlit's browser side would first look for its server below it, and report errors.
    """
    asked = st.query_params.get("page", RUNS)
    return asked if asked in names else RUNS


def link(page: str = "", **changes: object) -> str:
    """The address of a page: that of `page` with only `run` and `index` kept, or this page's own, with some changes.

    Args:
        page: `feature` and the like; empty for this page with all its state.
        **changes: keys of the URL with their new values; None, and an empty text, removes one.
    """
    now = {key: st.query_params.get_all(key) for key in st.query_params}
    kept = {key: values for key, values in now.items() if not page or key in ("run", "index")}
    named = {"page": page if page != RUNS else None} if page else {}
    items = {key: value for key, value in {**named, **kept, **changes}.items() if value not in (None, "", [])}
    return f"./?{urlencode(items, doseq=True)}"


def follow(href: str) -> None:
    """Make an address that `link` has spelt the browser's own."""
    st.query_params.from_dict(state(href))


def state(href: str) -> dict[str, list[str]]:
    """What an address says of its page."""
    return parse_qs(urlsplit(href).query)


def update(**changes: str | None) -> None:
    """Change some keys of the URL at once, so that they are one step back; None removes one."""
    now = {key: st.query_params.get_all(key) for key in st.query_params}
    st.query_params.from_dict({k: v for k, v in {**now, **changes}.items() if v is not None})


def _bound(
    key: str, default: Any, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]], clears: Sequence[str] = ()
) -> dict[str, Any]:
    st.session_state[key] = _read(st.query_params.get_all(key), default, read)
    return {"key": key, "on_change": _store, "args": (key, default, write, clears)}


def _read(texts: list[str], default: Any, read: Callable[[list[str]], Any]) -> Any:
    if not texts:
        return default
    try:
        return read(texts)
    except (KeyError, ValueError):
        return default


def _store(key: str, default: Any, write: Callable[[Any], list[str]], clears: Sequence[str]) -> None:
    """Put the widget's new value into the URL."""
    value = st.session_state[key]
    kept = {name: st.query_params.get_all(name) for name in st.query_params if name not in (key, *clears)}
    if value is not None and value != default:
        kept[key] = write(value)
    st.query_params.from_dict(kept)
