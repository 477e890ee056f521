"""The browser, the server and the page of journeys; where there is no browser, the journeys are named as not run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.analysis.indexed_runs import write_states
from tests.dashboard.browser import TIMEOUT_MS, Dashboard, idle, launch, serve

NOT_RUN: list[str] = []


@pytest.fixture(scope="session")
def found_browser() -> Iterator[Browser | str]:
    with sync_playwright() as playwright:
        found = launch(playwright)
        yield found
        if isinstance(found, Browser):
            found.close()


@pytest.fixture
def browser(found_browser: Browser | str, request: pytest.FixtureRequest) -> Browser:
    if isinstance(found_browser, str):
        NOT_RUN.append(request.node.nodeid)
        pytest.skip(found_browser)
    return found_browser


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NOT_RUN:
        terminalreporter.section("journeys not run, for want of a browser")
        for name in NOT_RUN:
            terminalreporter.line(name)


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in every state; read only."""
    return write_states(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A server of an empty folder of runs."""
    folder = tmp_path_factory.mktemp("dashboard")
    with serve(folder / "runs", folder) as running:
        yield running


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    """A fresh visitor; console errors and requests that leave the machine fail the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    page = context.new_page()
    dashboard.watch(page)
    yield page
    idle(page)
    context.close()
    errors, elsewhere = list(dashboard.errors), list(dashboard.elsewhere)
    dashboard.errors.clear()
    dashboard.elsewhere.clear()
    assert (errors, elsewhere) == ([], [])
