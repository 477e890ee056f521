"""A pytest plugin: the browser of the journeys; without one they are named as not run, and with one it is said how long
they took.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.dashboard.browser import TIMEOUT_MS, launch

JOURNEYS: set[str] = set()
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
    JOURNEYS.add(request.node.nodeid)
    return found_browser


@pytest.fixture(scope="session")
def visitor(found_browser: Browser | str) -> Iterator[BrowserContext | None]:
    """One visitor for all journeys, who has Streamlit's scripts in the cache; pages keep nothing in the browser."""
    if isinstance(found_browser, str):
        yield None
        return
    context = found_browser.new_context(viewport={"width": 1400, "height": 1200})
    context.set_default_timeout(TIMEOUT_MS)
    yield context
    context.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NOT_RUN:
        terminalreporter.section("journeys not run, for want of a browser")
        for name in NOT_RUN:
            terminalreporter.line(name)
    if JOURNEYS:
        reports = [r for kind in terminalreporter.stats.values() for r in kind if getattr(r, "nodeid", None) in JOURNEYS]
        seconds = sum(getattr(report, "duration", 0.0) for report in reports)
        terminalreporter.line(f"{len(JOURNEYS)} journeys in a browser: {seconds:.0f} s")
