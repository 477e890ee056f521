"""The address where the browser asks for something else while Python answers."""

from collections.abc import Iterator

import pytest
from streamlit.runtime.scriptrunner import ScriptRunner
from streamlit.testing.v1 import AppTest

from dashboard.state import uninterrupted_callbacks


def _page() -> None:
    """A button writes to the address; at the same moment a timer asks for a run by the address as it was."""
    import streamlit as st
    from streamlit.runtime.scriptrunner import RerunData, get_script_run_ctx

    from dashboard.state import address

    def pressed() -> None:
        ctx = get_script_run_ctx()
        assert ctx is not None and ctx.script_requests is not None
        for back in st.session_state.get("back", ()):
            ctx.script_requests.request_rerun(RerunData(query_string="page=runs&run=a&q=x", is_history_navigation=back))
        st.session_state["pressed"] = True
        address.update(page=st.session_state["to"], q=None)

    address.begin()
    st.button("Open", on_click=pressed)
    st.text(f"{address.get('page')} {address.get('run')} {address.get('q')} {st.session_state.get('pressed')}")


@pytest.fixture
def whole() -> Iterator[None]:
    """Callbacks run to their end, in this test."""
    before = ScriptRunner._maybe_handle_execution_control_request
    uninterrupted_callbacks.install()
    yield
    ScriptRunner._maybe_handle_execution_control_request = before  # type: ignore[method-assign]


def _opened(*back: bool, page: str = "feature") -> str:
    app = AppTest.from_function(_page)
    for key, value in {"page": "runs", "run": "a", "q": "x"}.items():
        app.query_params[key] = value
    app.session_state["back"], app.session_state["to"] = back, page
    app.run()
    app.button[0].click().run()
    assert not app.exception
    return str(app.text[0].value)


def test_a_button_does_all_that_it_should_though_another_run_is_asked_for(whole: None) -> None:
    assert _opened() == "feature a None True"
    assert _opened(False) == "feature a None True"
    assert _opened(False, False) == "feature a None True"


def test_a_key_that_was_removed_stays_away(whole: None) -> None:
    assert _opened(False, page="runs") == "runs a None True"


def test_streamlit_alone_loses_it() -> None:
    assert _opened(False) == "runs a x None"


def test_back_counts_over_what_was_written_before(whole: None) -> None:
    assert _opened(True) == "runs a x True"
