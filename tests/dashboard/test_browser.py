"""Where the journeys' browser comes from, and what is said where there is none."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Playwright

from tests.dashboard import browser as found

ROOT = Path(__file__).parents[2]


class Machine:
    """A machine with some browsers, on which somebody may or may not install one."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *programs: str, root: bool = False, downloaded: bool = False
    ) -> None:
        self.programs, self.downloaded = set(programs), downloaded
        self.asked: list[str | None] = []
        self.commands: list[list[str]] = []
        monkeypatch.setattr(found.shutil, "which", lambda name: f"/usr/bin/{name}" if name in self.programs else None)
        monkeypatch.setattr(found.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(found.subprocess, "run", self.run)

    def run(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.commands.append(command)
        if "install" in command:
            self.programs.add("chromium")
        return SimpleNamespace(returncode=0)

    def launch(self, *, executable_path: str | None, **_: Any) -> Browser:
        self.asked.append(executable_path)
        if executable_path is None and not self.downloaded:
            raise Error("Executable doesn't exist")
        return Browser.__new__(Browser)

    def browser(self) -> Browser | str:
        playwright: Playwright = SimpleNamespace(chromium=self)  # type: ignore[assignment]
        return found.launch(playwright)


def test_a_system_chromium_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, "google-chrome", "chromium-browser", "apt-get", root=True, downloaded=True)
    assert isinstance(machine.browser(), Browser)
    assert (machine.asked, machine.commands) == (["/usr/bin/chromium-browser"], [])


def test_then_the_one_that_playwright_has_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, "apt-get", root=True, downloaded=True)
    assert isinstance(machine.browser(), Browser)
    assert (machine.asked, machine.commands) == ([None], [])


def test_then_debians_where_it_may_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, "apt-get", root=True)
    assert isinstance(machine.browser(), Browser)
    assert machine.asked == [None, "/usr/bin/chromium"]
    assert [command[2] for command in machine.commands] == ["update", "install"]


@pytest.mark.parametrize(("programs", "root"), [((), True), (("apt-get",), False)])
def test_else_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, programs: tuple[str, ...], root: bool) -> None:
    machine = Machine(monkeypatch, *programs, root=root)
    assert "apt-get install chromium, or playwright install chromium" in str(machine.browser())
    assert machine.commands == []


def test_without_a_browser_journeys_are_named_as_not_run(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_a_journey(browser): assert False\ndef test_no_journey(): pass\n")
    nothing = {"PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.dashboard.visitors", "-p", "no:cacheprovider", "-c", os.devnull,
         "--rootdir", str(tmp_path), str(tmp_path)],
        env=os.environ | nothing, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "1 passed, 1 skipped" in run.stdout, run.stdout + run.stderr
    said = run.stdout.split("journeys not run, for want of a browser")[1]
    assert "test_some.py::test_a_journey" in said and "test_no_journey" not in said
