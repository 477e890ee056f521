"""Journeys in a real browser, on the server that `sae dashboard` starts."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from tests.analysis.run_folders import line, write_run

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]


@dataclass
class Dashboard:
    """A running server, and what browsers met there."""

    url: str
    runs: Path
    home: Path
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("dashboard")
    runs, home = folder / "runs", folder / "home"
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sae = str(Path(sys.executable).parent / "sae")
    command = [sae, "dashboard", "--runs", str(runs), "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, env=os.environ | {"HOME": str(home)}, stdout=subprocess.DEVNULL)
    try:
        _wait_until_healthy(f"http://localhost:{port}/_stcore/health", server)
        yield Dashboard(f"http://localhost:{port}", runs, home)
    finally:
        server.terminate()
        server.wait(timeout=10)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, or the one that playwright has downloaded."""
    system = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=system, headless=True, args=FLAGS)
        except Error as error:
            pytest.skip(f"no browser: apt-get install chromium, or playwright install chromium ({error.message[:80]})")
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    """A fresh visitor; console errors and requests that leave the machine fail the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    page = context.new_page()
    page.on("console", lambda m: dashboard.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: dashboard.errors.append(str(error)))
    page.on("request", lambda request: _note(request.url, dashboard))
    yield page
    context.close()
    assert (dashboard.errors, dashboard.elsewhere) == ([], [])


def _note(url: str, dashboard: Dashboard) -> None:
    if not url.startswith((dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")):
        dashboard.elsewhere.append(url)


def _idle(page: Page) -> None:
    page.locator("[data-testid='stApp'][data-test-script-state='notRunning']").wait_for()


def test_from_no_runs_to_a_run_in_progress_that_ends(page: Page, dashboard: Dashboard) -> None:
    page.goto(dashboard.url)
    expect(page.get_by_text("sae train configs/quickstart.yaml")).to_be_visible()
    folder = write_run(dashboard.runs, "live", n_lines=25, finished=False)
    expect(page.get_by_text("1 run, 1 training")).to_be_visible(timeout=10_000)
    before = page.get_by_label(re.compile("FVE.* over training tokens")).first.get_attribute("aria-label")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(50)) + "\n")
    grown = page.get_by_label(f"live ends at {1 - 1 / 51:.4g}")
    expect(grown.first).to_be_visible(timeout=10_000)
    assert before is not None and "0.9615" in before
    (folder / "summary.json").write_text(json.dumps({"heldout": {}, "n_rows_trained": 12_800}))
    expect(page.get_by_text("1 training")).to_be_hidden(timeout=10_000)


def test_choices_go_into_the_url_and_back_undoes_them(page: Page, dashboard: Dashboard) -> None:
    for name in ("left", "right"):
        write_run(dashboard.runs, name)
    page.goto(f"{dashboard.url}/?runs=left&runs=right&metrics=lr")
    expect(page.get_by_label("Learning rate over training tokens: left ends at 0.001; right").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    toggle = page.locator(".st-key-logy input")
    page.locator(".st-key-logy label").click()
    expect(page).to_have_url(re.compile("logy=true"))
    page.reload()
    expect(toggle).to_be_checked()
    expect(page.get_by_text("right", exact=True).first).to_be_visible()
    page.go_back()
    expect(page).not_to_have_url(re.compile("logy=true"))
    expect(toggle).not_to_be_checked()
    _idle(page)


def test_the_curves_can_be_downloaded(page: Page, dashboard: Dashboard) -> None:
    write_run(dashboard.runs, "kept")
    page.goto(f"{dashboard.url}/?runs=kept")
    with page.expect_download() as download:
        page.get_by_role("button", name="Curves (CSV)").click()
    text = Path(download.value.path()).read_text()
    assert text.startswith("run,step,rows,metric,value\nkept,1,256,lr,0.001\n")
