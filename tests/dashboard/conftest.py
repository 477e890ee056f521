"""The server and the page of journeys, and folders of runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from analysis.index import build, open_index
from tests.analysis.indexed_runs import train_tiny, write_states
from tests.dashboard.browser import TIMEOUT_MS, Dashboard, idle, serve
from tests.dashboard.visitors import browser, found_browser, pytest_terminal_summary, visitor

__all__ = ["browser", "found_browser", "pytest_terminal_summary", "visitor"]  # pytest finds them here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A journey that fails on a machine that is busy with other tests is walked once more; the summary names it."""
    for item in items:
        if "found_browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, which the pages of this process show."""
    monkeypatch.setenv("SAESCOPE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in every state; read only."""
    return write_states(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="session")
def busy(states: Path) -> list[int]:
    """Features of the healthy run that fire, the most frequent first."""
    found: list[int] = open_index(states / "healthy").top("n_active", where="n_active > 20")["feature"].to_pylist()
    return found


@pytest.fixture(scope="session")
def dashboard(states: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """One server of runs in every state for all journeys: add runs, change none."""
    folder = tmp_path_factory.mktemp("journeys")
    shutil.copytree(states, folder / "runs")
    with serve(folder / "runs", folder) as running:
        yield running


@pytest.fixture(scope="session")
def slow(dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the same server whose model takes its time with each token."""
    folder = tmp_path_factory.mktemp("slow")
    model = {"name": "native:d_model=192,n_layers=48,n_heads=4"}
    made = train_tiny(folder, "slow", model=model, train={"budget": "1k tokens"})
    build(made, quiet=True)
    shutil.copytree(made, dashboard.runs / "slow")
    return "slow"


@pytest.fixture
def page(browser: Browser, visitor: BrowserContext, dashboard: Dashboard) -> Iterator[Page]:
    """A fresh page; console errors and requests that leave the machine fail the test."""
    expect.set_options(timeout=TIMEOUT_MS)
    page = visitor.new_page()
    dashboard.met()  # of a journey that failed
    dashboard.watch(page)
    try:
        yield page
        idle(page)
    finally:
        page.close()
    assert dashboard.met() == []
