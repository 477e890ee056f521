"""The URL holds all of a page's state: a link reproduces the page, and Back undoes a choice.

Streamlit's own binding of widgets to the URL replaces the browser's history entry, so that Back would leave the page.
Here a widget takes its value from the URL before it is drawn, and a change adds a history entry:

    st.toggle("log x", **address.flag("logx"))

A missing or invalid value means the default; defaults are never written. HTML changes the state with ordinary links:
`link` builds the URL of a page as it would be after a choice.

`SELECTION` is kept from page to page, and every link has all of it: if the URL omits a part, as on the first visit, the
page calls `settle` with its choice. All other keys belong to one page; the browser remembers them until that page is
visited again (`components/navigation.js`).
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
"""Keys kept from page to page: the run, the feature, the search, filter and order of features, the prompt."""
OF_RUN = ("index", "f", "with", "list", "box", "p", "range", "token", "strength", "also")
"""Keys to drop when the run changes."""
OF_FEATURE = ("p", "with", "range", "strength", "also")
"""Keys of single pages to drop when the feature changes."""
LATE_S = 10.0
"""A request that comes this long after Python wrote a URL is assumed to know that URL."""
N_CHARS = 4000
"""Maximum length of a text in the URL: browsers and proxies truncate longer URLs."""


@dataclass(frozen=True)
class _Written:
    """A URL written by Python, the browser's URL before it, and the time (`time.monotonic`, s)."""

    before: dict[str, list[str]]
    after: dict[str, list[str]]
    when: float


def flag(key: str, *, default: bool = False) -> dict[str, Any]:
    """Arguments for a boolean widget, `?key=true`."""
    return _bound(key, default, lambda texts: {"true": True, "false": False}[texts[-1]], lambda on: [str(on).lower()])


def number(key: str, low: float, high: float, *, default: float) -> dict[str, Any]:
    """Arguments for a number widget, `?key=0.5`; values outside [`low`, `high`] are invalid."""

    def read(texts: list[str]) -> float:
        value = float(texts[-1])
        if not low <= value <= high:
            raise ValueError(f"{value} lies outside {low} to {high}")
        return value

    return _bound(key, default, read, lambda value: [f"{value:.10g}"])


def integer(key: str, low: int, high: int, *, default: int, clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments for an integer widget, `?key=5`; values outside [`low`, `high`] are invalid."""

    def read(texts: list[str]) -> int:
        value = int(texts[-1])
        if not low <= value <= high:
            raise ValueError(f"{value} lies outside {low} to {high}")
        return value

    return _bound(key, default, read, lambda value: [str(value)], clears)


def text(key: str, *, default: str = "", clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments for a text widget, `?key=some+words`, truncated to `N_CHARS` characters."""
    return _bound(key, default, lambda texts: texts[-1][:N_CHARS], lambda value: [(value or "")[:N_CHARS]], clears)


def choice(key: str, options: Sequence[str], *, default: str, clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments for a widget that selects one option, `?key=a`; unknown options are invalid.

    Args:
        key: key in the URL.
        options: the options.
        default: one of `options`.
        clears: other URL keys to remove when the choice changes.
    """

    def read(texts: list[str]) -> str:
        if texts[-1] not in options:
            raise ValueError(f"{texts[-1]} is not among the options")
        return texts[-1]

    return _bound(key, default, read, lambda value: [value], clears)


def several(key: str, options: Sequence[str]) -> dict[str, Any]:
    """Arguments for a multiselect, `?key=a&key=b`, in order of selection; unknown options are ignored."""
    return _bound(key, [], lambda texts: [text for text in dict.fromkeys(texts) if text in options], list)


def page(names: Container[str]) -> str:
    """The page in the URL, `?page=feature`; Runs if it is missing or unknown.

    It is not a path (`/feature`), because Streamlit's front end would first look for its server under that path and report
    errors.
    """
    asked = st.query_params.get("page", RUNS)
    return asked if asked in names else RUNS


def begin() -> None:
    """Start a new draw of the page: clear the settled values."""
    caught_up()
    st.session_state["_settled"] = {}


def caught_up() -> None:
    """Restore the last URL written by Python if the browser sent this request before it received that URL.

    Every fragment that reads the URL calls this first.
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
    """Whether two URLs are equal, ignoring settled values, which the browser adds."""
    added = st.session_state.get("_settled", {}).keys() - state.keys()
    return {key: values for key, values in asked.items() if key not in added} == state


def _went_back() -> bool:
    """Whether Back or Forward triggered this script run."""
    return bool(getattr(get_script_run_ctx(suppress_warning=True), "is_history_navigation", False))


def _state() -> dict[str, list[str]]:
    return {key: st.query_params.get_all(key) for key in st.query_params}


def _write(after: Mapping[str, Sequence[str]]) -> None:
    """Set the URL, here and in the browser."""
    state = {key: list(values) for key, values in after.items() if values}
    st.session_state["_written"] = _Written(_state(), state, time.monotonic())
    st.query_params.from_dict(state)


def settle(key: str, value: object) -> None:
    """Record the page's choice for a key that the URL omits or has wrong; links carry it from now on."""
    st.session_state.setdefault("_settled", {})[key] = (st.query_params.get(key), str(value))


def settled() -> dict[str, str]:
    """Settled values that aren't in the URL yet."""
    return {key: value for key, (asked, value) in st.session_state.get("_settled", {}).items()
            if st.query_params.get(key) == asked != value}


def get(key: str) -> str | None:
    """A key's effective value: the settled one, else the URL's."""
    return settled().get(key, st.query_params.get(key))


def now() -> dict[str, list[str]]:
    """The complete state of the page."""
    return _state() | {k: [v] for k, v in settled().items()}


def link(page: str = "", /, **changes: object) -> str:
    """The URL of a page with some changes: another page with the selection kept, or this page with all its state.

    Args:
        page: a page's name, such as `feature`; empty for this page.
        **changes: new values by URL key; None or "" removes a key.
    """
    return linker(page)(**changes)


def linker(page: str = "", /, **changes: object) -> Callable[..., str]:
    """A fast `link` for many URLs that differ in a few keys: the URL is read and encoded once, which is the slow part.

    Args:
        page: as for `link`.
        **changes: changes common to all URLs; the returned function takes more.
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
    """The URL changes that switch to another run."""
    return {**dict.fromkeys(OF_RUN), "run": name}


def _spelt(items: Mapping[str, object]) -> str:
    return urlencode({key: value for key, value in items.items() if value not in (None, "", [])}, doseq=True)


def follow(href: str) -> None:
    """Go to a URL built by `link`."""
    _write(state(href))


def state(href: str) -> dict[str, list[str]]:
    """Parse a URL's query string into page state."""
    return parse_qs(urlsplit(href).query)


def update(**changes: str | None) -> None:
    """Change several URL keys in one history entry; None removes a key."""
    new = {key: [value] for key, value in changes.items() if value is not None}
    _write({key: values for key, values in now().items() if key not in changes} | new)


class Form:
    """Fields of an `st.form`: they take their values from the URL, and submitting adds one history entry.

        form = address.Form()
        st.text_area("Prompt", **form.text("prompt"))
        st.form_submit_button("Go", on_click=form.submit)
    """

    def __init__(self, *clears: str, always: Sequence[str] = ()) -> None:
        """Start without fields.

        Args:
            clears: URL keys to remove on submit.
            always: keys to write even if they have their default value, which records that the form was submitted.
        """
        self._clears, self._always = clears, always
        self._fields: dict[str, tuple[Any, Callable[[Any], list[str]]]] = {}

    def text(self, key: str, *, default: str = "") -> dict[str, Any]:
        """Like the module's function of the same name; so are the methods below."""
        return self._field(key, default, text(key, default=default))

    def number(self, key: str, low: float, high: float, *, default: float) -> dict[str, Any]:
        """Arguments for a number widget."""
        return self._field(key, default, number(key, low, high, default=default))

    def integer(self, key: str, low: int, high: int, *, default: int) -> dict[str, Any]:
        """Arguments for an integer widget."""
        return self._field(key, default, integer(key, low, high, default=default))

    def choice(self, key: str, options: Sequence[str], *, default: str) -> dict[str, Any]:
        """Arguments for a widget that selects one option."""
        return self._field(key, default, choice(key, options, default=default))

    def several(self, key: str, options: Sequence[str]) -> dict[str, Any]:
        """Arguments for a multiselect."""
        return self._field(key, [], several(key, options))

    def submit(self, **also: str) -> None:
        """Write the fields' values, and any extra keys, to the URL."""
        kept = {key: values for key, values in now().items() if key not in (*self._fields, *self._clears)}
        for key, (default, write) in self._fields.items():
            value = st.session_state[key]
            if value is not None and (value != default or key in self._always):
                kept[key] = write(value)
        _write({**kept, **{key: [value] for key, value in also.items()}})

    def _field(self, key: str, default: Any, bound: dict[str, Any]) -> dict[str, Any]:
        # fields inside a form can't have callbacks; only the submit button has one
        self._fields[key] = default, bound["args"][2]
        return {"key": key}


def _bound(
    key: str, default: Any, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]], clears: Sequence[str] = ()
) -> dict[str, Any]:
    value = _read(st.query_params.get_all(key), default, read)
    if key not in st.session_state or st.session_state[key] != value:  # setting a field discards what is being typed in it
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
    """Write the widget's new value to the URL."""
    value = st.session_state[key]
    kept = {name: values for name, values in now().items() if name not in (key, *clears)}
    if value is not None and value != default:
        kept[key] = write(value)
    _write(kept)
