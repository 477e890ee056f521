"""A browser and a server for journeys, and what every page promises wherever it is: no errors, no request elsewhere."""

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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Error, Page, Playwright, expect

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]
TIMEOUT_MS = 60_000


def launch(playwright: Playwright) -> Browser | str:
    """The system's Chromium, else the one that playwright has downloaded, else Debian's where it may be installed.

    Returns:
        The browser, or why there is none.
    """
    if (system := system_browser()) is not None:
        return _launched(playwright, system)
    downloaded = _launched(playwright, None)
    if isinstance(downloaded, Browser) or not _install_debian():
        return downloaded
    return _launched(playwright, system_browser())


def system_browser() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def _launched(playwright: Playwright, path: str | None) -> Browser | str:
    try:
        return playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
    except Error as error:
        return f"no browser: apt-get install chromium, or playwright install chromium ({error.message[:80]!r})"


def _install_debian() -> bool:
    """Whether Debian's package could be installed: only root on a machine with apt-get may."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        try:
            done = subprocess.run(["apt-get", "-qq", *command], capture_output=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            return False
    return True


@dataclass
class Dashboard:
    """A running server, and what browsers met there."""

    url: str
    runs: Path
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Note a page's console errors, and its requests that leave the machine."""
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def met(self) -> list[str]:
        """The errors and the requests elsewhere since the last time."""
        met = [*self.errors, *self.elsewhere]
        self.errors.clear()
        self.elsewhere.clear()
        return met

    def _note(self, url: str) -> None:
        if not url.startswith((self.url, self.url.replace("http", "ws"), "data:", "blob:")):
            self.elsewhere.append(url)


@contextmanager
def serve(runs: Path, folder: Path, *, own_home: bool = True) -> Iterator[Dashboard]:
    """The server that `sae dashboard` starts, with a home of its own, in which it must leave nothing.

    Args:
        runs: folder of all runs.
        folder: the server's current folder.
        own_home: False for runs whose model is kept in the user's cache.
    """
    home = folder / "home"
    home.mkdir(exist_ok=True)
    port = free_port()
    command = [str(Path(sys.executable).parent / "sae"), "dashboard", "--runs", str(runs), "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        environment = os.environ | ({"HOME": str(home)} if own_home else {})
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(f"http://localhost:{port}/_stcore/health", server)
            yield Dashboard(f"http://localhost:{port}", runs)
        finally:
            server.terminate()
            server.wait(timeout=30)
    said = (folder / "server.log").read_text()
    # Streamlit does not expect that a page goes while an answer to it is on its way
    said = re.sub(r"Traceback(?:(?!Traceback).)*?WebSocketDisconnected[^\n]*", "", said, flags=re.DOTALL)
    assert "Traceback" not in said, said[-3000:]
    assert [p for p in home.rglob("*") if p.is_file()] == []


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def idle(page: Page) -> None:
    """Wait until the page has been drawn to its end and listens to keys."""
    page.locator("dialog.sx-keys[data-ready]").first.wait_for(state="attached", timeout=TIMEOUT_MS)
    page.wait_for_function("globalThis.saescopeReader?.quiet ?? true", timeout=TIMEOUT_MS)
    page.locator("[data-testid='stApp'][data-test-script-state='notRunning']").wait_for(timeout=TIMEOUT_MS)


def unfold(page: Page, title: str) -> None:
    """Open what is folded under a title, and wait until it lies still."""
    page.get_by_text(title).click()
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')", timeout=TIMEOUT_MS)


def visit(page: Page, dashboard: Dashboard, query: str) -> None:
    """Follow a deep link."""
    page.goto(f"{dashboard.url}/?{query}")
    idle(page)


def heading(page: Page, feature: int) -> None:
    """The feature is shown, with its drawing, and keys walk from there."""
    expect(page.get_by_role("heading", name=f"Feature {feature}", exact=True)).to_be_visible()
    expect(page.locator(f".sx-bar-row[data-feature='{feature}']")).to_be_visible()


def address_says(page: Page, feature: int) -> None:
    """The address has followed to a feature."""
    expect(page).to_have_url(re.compile(rf"[?&]f={feature}(&|$)"))
