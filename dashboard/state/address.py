"""The URL as the one place of a page's state: a link shows the same, and Back undoes a choice.

Streamlit's own binding of widgets to the URL replaces the entry in the browser's history, so that Back would leave the
page. Here a widget takes its value from the URL before it is drawn, and a changed one makes a new entry:

    st.toggle("log x", **address.flag("logx"))

A value that is missing from the URL, or that does not fit, is the default; the default is never written. What is drawn
as HTML changes the state by ordinary links: `link` spells the URL of a page as it would be after a choice.

`SELECTION` is what stays selected from page to page. Every link has it whole: where the URL leaves a part open, as the
first visit does, the page says by `settle` what it has taken. All other keys belong to one page; the browser remembers
them until that page is visited again (`components/navigation.js`).
"""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

RUNS = "runs"
SELECTION = ("run", "index", "f", "q", "by", "sort", "asc", "filter", "list", "box", "text")
"""Keys that follow from page to page: the run, the feature, what lists and orders the features, the prompt."""
OF_RUN = ("index", "f", "with", "list", "box", "p", "range", "token", "strength", "also")
"""Keys that mean nothing in another run."""
OF_FEATURE = ("p", "with", "range", "strength", "also")
"""Keys of single pages that mean nothing beside another feature."""
LATE_S = 10.0
"""What the browser asks so long after an address was written, it asks knowing that address."""
N_CHARS = 4000
"""Longest text that the URL holds: browsers and proxies cut longer addresses."""


@dataclass(frozen=True)
class _Written:
    """An address that Python has written, that of the browser before, and when."""

    before: dict[str, list[str]]
    after: dict[str, list[str]]
    when: float


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

    return _bound(key, default, read, lambda value: [f"{value:.10g}"])


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


def begin() -> None:
    """Begin to draw the page anew: nothing is settled yet."""
    caught_up()
    st.session_state["_settled"] = {}


def caught_up() -> None:
    """Use the address that was written last, where the browser asked for this run before it had heard of that address.

    Every part that is drawn by itself and reads the address calls this first.
    """
    written: _Written | None = st.session_state.get("_written")
    if written is None or time.monotonic() - written.when > LATE_S:
        return
    asked = _state()
    if _same(asked, written.after):
        return
    if _same(asked, written.before) and not _went_back():
        st.query_params.from_dict(written.after)
    else:
        st.session_state["_written"] = None


def _same(asked: Mapping[str, list[str]], state: Mapping[str, list[str]]) -> bool:
    """Whether two addresses are one, but for what pages have settled, which the browser adds."""
    added = st.session_state.get("_settled", {}).keys() - state.keys()
    return {key: values for key, values in asked.items() if key not in added} == state


def _went_back() -> bool:
    """Whether Back or Forward asked for this run."""
    return bool(getattr(get_script_run_ctx(suppress_warning=True), "is_history_navigation", False))


def _state() -> dict[str, list[str]]:
    return {key: st.query_params.get_all(key) for key in st.query_params}


def _write(after: Mapping[str, Sequence[str]]) -> None:
    """Make this the address, here and in the browser."""
    state = {key: list(values) for key, values in after.items() if values}
    st.session_state["_written"] = _Written(_state(), state, time.monotonic())
    st.query_params.from_dict(state)


def settle(key: str, value: object) -> None:
    """Say what the page shows where the URL leaves it open, or names what there is not; links carry it from now on."""
    st.session_state.setdefault("_settled", {})[key] = (st.query_params.get(key), str(value))


def settled() -> dict[str, str]:
    """What pages have settled and the URL does not say by now."""
    return {key: value for key, (asked, value) in st.session_state.get("_settled", {}).items()
            if st.query_params.get(key) == asked != value}


def get(key: str) -> str | None:
    """A key's value as it is shown: the URL's, or what the page has settled on instead."""
    return settled().get(key, st.query_params.get(key))


def now() -> dict[str, list[str]]:
    """The whole state of the page."""
    return _state() | {k: [v] for k, v in settled().items()}


def link(page: str = "", /, **changes: object) -> str:
    """The address of a page: that of `page` with the selection kept, or this page's own, with some changes.

    Args:
        page: `feature` and the like; empty for this page with all its state.
        **changes: keys of the URL with their new values; None, and an empty text, removes one.
    """
    return linker(page)(**changes)


def linker(page: str = "", /, **changes: object) -> Callable[..., str]:
    """What spells many addresses that differ a little: as `link`, but the URL is read and spelt once, which takes long.

    Args:
        page: as of `link`.
        **changes: common to all; the function that is returned takes further ones.
    """
    kept = {key: values for key, values in now().items() if not page or key in SELECTION}
    common = {**({"page": page if page != RUNS else None} if page else {}), **kept, **changes}

    spelt: dict[tuple[str, ...], str] = {}

    def spell(**further: object) -> str:
        keys = tuple(further)
        if keys not in spelt:
            spelt[keys] = _spelt({key: value for key, value in common.items() if key not in further})
        first = {"page": further.pop("page")} if "page" in further else {}
        return "./?" + "&".join(filter(None, (_spelt(first), spelt[keys], _spelt(further))))

    return spell


def of_run(name: str) -> dict[str, str | None]:
    """What changes in an address that is to show another run."""
    return {**dict.fromkeys(OF_RUN), "run": name}


def _spelt(items: Mapping[str, object]) -> str:
    return urlencode({key: value for key, value in items.items() if value not in (None, "", [])}, doseq=True)


def follow(href: str) -> None:
    """Make an address that `link` has spelt the browser's own."""
    _write(state(href))


def state(href: str) -> dict[str, list[str]]:
    """What an address says of its page."""
    return parse_qs(urlsplit(href).query)


def update(**changes: str | None) -> None:
    """Change some keys of the URL at once, so that they are one step back; None removes one."""
    new = {key: [value] for key, value in changes.items() if value is not None}
    _write({key: values for key, values in now().items() if key not in changes} | new)


class Form:
    """The fields of a `st.form`: they take their values from the URL, and pressing its button is one step in it.

        form = address.Form()
        st.text_area("Prompt", **form.text("prompt"))
        st.form_submit_button("Go", on_click=form.submit)
    """

    def __init__(self, *clears: str, always: Sequence[str] = ()) -> None:
        """No fields yet.

        Args:
            clears: keys of the URL that pressing the button makes meaningless.
            always: keys that are written even where they are the default, and so say that the button was pressed.
        """
        self._clears, self._always = clears, always
        self._fields: dict[str, tuple[Any, Callable[[Any], list[str]]]] = {}

    def text(self, key: str, *, default: str = "") -> dict[str, Any]:
        """As the function of the same name; so are the others."""
        return self._field(key, default, text(key, default=default))

    def number(self, key: str, low: float, high: float, *, default: float) -> dict[str, Any]:
        """A number."""
        return self._field(key, default, number(key, low, high, default=default))

    def integer(self, key: str, low: int, high: int, *, default: int) -> dict[str, Any]:
        """A whole number."""
        return self._field(key, default, integer(key, low, high, default=default))

    def choice(self, key: str, options: Sequence[str], *, default: str) -> dict[str, Any]:
        """One of the options."""
        return self._field(key, default, choice(key, options, default=default))

    def several(self, key: str, options: Sequence[str]) -> dict[str, Any]:
        """Some of the options."""
        return self._field(key, [], several(key, options))

    def submit(self, **also: str) -> None:
        """Put what the fields hold into the URL, and further keys."""
        kept = {key: values for key, values in now().items() if key not in (*self._fields, *self._clears)}
        for key, (default, write) in self._fields.items():
            value = st.session_state[key]
            if value is not None and (value != default or key in self._always):
                kept[key] = write(value)
        _write({**kept, **{key: [value] for key, value in also.items()}})

    def _field(self, key: str, default: Any, bound: dict[str, Any]) -> dict[str, Any]:
        # what a field in a form tells is heard by its button alone
        self._fields[key] = default, bound["args"][2]
        return {"key": key}


def _bound(
    key: str, default: Any, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]], clears: Sequence[str] = ()
) -> dict[str, Any]:
    value = _read(st.query_params.get_all(key), default, read)
    if key not in st.session_state or st.session_state[key] != value:  # a field that is set loses what is typed in it
        st.session_state[key] = value
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
    kept = {name: values for name, values in now().items() if name not in (key, *clears)}
    if value is not None and value != default:
        kept[key] = write(value)
    _write(kept)
