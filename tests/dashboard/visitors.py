"""A pytest plugin: the browser of the journeys; without one they are named as not run, and with one it is said how long
they took.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.dashboard.browser import TIMEOUT_MS, launch

STILL = """{
  const style = new CSSStyleSheet();
  style.replaceSync("*, *::before, *::after { transition: none !important; animation: none !important }");
  document.adoptedStyleSheets = [style];
}"""
"""Nothing slides or fades: on a busy machine a button that moves is pressed where it no longer is."""
JOURNEY = ("journey", True)
"""A property of each test that asks for a browser; it reaches the summary whichever worker ran the test."""


@pytest.fixture(scope="session")
def found_browser() -> Iterator[Browser | str]:
    with sync_playwright() as playwright:
        found = launch(playwright)
        yield found
        if isinstance(found, Browser):
            found.close()


@pytest.fixture
def browser(found_browser: Browser | str, request: pytest.FixtureRequest) -> Browser:
    request.node.user_properties.append(JOURNEY)
    if isinstance(found_browser, str):
        pytest.skip(found_browser)
    return found_browser


@pytest.fixture(scope="session")
def visitor(found_browser: Browser | str) -> Iterator[BrowserContext | None]:
    """One visitor for all journeys, who has Streamlit's scripts in the cache; pages keep nothing in the browser."""
    if isinstance(found_browser, str):
        yield None
        return
    context = found_browser.new_context(viewport={"width": 1400, "height": 1200})
    context.set_default_timeout(TIMEOUT_MS)
    context.add_init_script(STILL)
    yield context
    context.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for kind in terminalreporter.stats.values() for r in kind if JOURNEY in getattr(r, "user_properties", ())]
    if not_run := sorted({report.nodeid for report in reports if report.skipped}):
        terminalreporter.section("journeys not run, for want of a browser")
        for name in not_run:
            terminalreporter.line(name)
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.line(f"walked once more after it failed: {report.nodeid}")
        terminalreporter.line(report.longreprtext[:4000])
    if run := {report.nodeid for report in reports} - {*not_run}:
        seconds = sum(report.duration for report in reports if report.nodeid in run)
        terminalreporter.line(f"{len(run)} journeys in a browser: {seconds:.0f} s")
