"""The URL as the one place of a page's state: a link shows the same, and Back undoes a choice.

Streamlit's own binding of widgets to the URL replaces the entry in the browser's history, so that Back would leave the
page. Here a widget takes its value from the URL before it is drawn, and a changed one makes a new entry:

    st.toggle("log x", **address.flag("logx"))

A value that is missing from the URL, or that does not fit, is the default; the default is never written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st


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


def several(key: str, options: Sequence[str]) -> dict[str, Any]:
    """Arguments of a widget for some of the options in the order of choice, `?key=a&key=b`; unknown ones are left out."""
    return _bound(key, [], lambda texts: [text for text in dict.fromkeys(texts) if text in options], list)


def _bound(
    key: str, default: Any, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]]
) -> dict[str, Any]:
    st.session_state[key] = _read(st.query_params.get_all(key), default, read)
    return {"key": key, "on_change": _store, "args": (key, default, write)}


def _read(texts: list[str], default: Any, read: Callable[[list[str]], Any]) -> Any:
    if not texts:
        return default
    try:
        return read(texts)
    except (KeyError, ValueError):
        return default


def _store(key: str, default: Any, write: Callable[[Any], list[str]]) -> None:
    """Put the widget's new value into the URL."""
    value = st.session_state[key]
    if value == default:
        st.query_params.pop(key, None)
    else:
        st.query_params[key] = write(value)
