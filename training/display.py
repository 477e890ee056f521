"""Progress display: a bar with tokens/s, time left and the main metrics; plain lines without a terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 15.0
"""Seconds between two lines without a terminal."""


class Display:
    """Progress bars on stderr. `quiet` shows nothing. Under torchrun only the first rank prints.

    The steps of a planned job are numbered: "3 of 6: training".
    """

    def __init__(self, *, quiet: bool = False) -> None:
        quiet = quiet or int(os.environ.get("RANK", "0")) > 0
        self._plan: tuple[str, ...] = ()
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        (self._progress.console if self._progress else self.console).print(text, markup=False)

    def plan(self, *titles: str) -> None:
        """Plan the next steps, by task title up to a colon; tasks with other titles belong to the step before them."""
        self._plan = titles

    def step(self, title: str) -> None:
        """Announce a planned step that has no bar; does nothing for other titles."""
        if title in self._plan:
            self.say(self.numbered(title))

    def numbered(self, title: str) -> str:
        """A title with its position in the plan."""
        name = title.partition(":")[0]
        return f"{self._plan.index(name) + 1} of {len(self._plan)}: {title}" if name in self._plan else title

    @contextmanager
    def task(self, title: str, total: int, unit: str = "tokens") -> Iterator["Task"]:
        """Context of a task of `total` units, with a bar; without a terminal, occasional lines and one at the end."""
        title = self.numbered(title)
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )
        progress = Progress(*columns, console=self.console, disable=not self.live, transient=True)
        task = Task(self, progress, progress.add_task(title, total=total, rate="", note=""), title, unit)
        with progress:
            self._progress = progress
            try:
                yield task
            finally:
                self._progress = None
        self.say(f"{title}: {task.summary()}")

    def table(self, title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
        """Print a table to stdout, where results go."""
        table = Table(title=title, title_justify="left", show_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
        if not self.console.quiet:
            # a file or a pipe has no width, and must not be wrapped to a terminal's default
            Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


class Task:
    """One progress bar."""

    def __init__(self, display: Display, progress: Progress, task: TaskID, title: str, unit: str) -> None:
        self.display, self.progress, self.id, self.title, self.unit = display, progress, task, title, unit
        self.total = int(progress.tasks[0].total or 0)
        self.done, self.skipped, self.began = 0, 0, time.monotonic()
        self._next_line = self.began + LINE_SECONDS

    def skip(self, n: int) -> None:
        """Add work done before this process started; it doesn't count towards the rate."""
        self.skipped += n
        self.progress.update(self.id, advance=n)

    def advance(self, n: int) -> None:
        """Advance by `n` units."""
        self.done += n
        self.progress.update(self.id, advance=n, rate=self.rate())
        if self._line_due(LINE_SECONDS):
            self.display.say(f"{self.title}: {self.summary()}{self.left()}")

    def note(self, metrics: dict[str, Any]) -> None:
        """Show a few metrics next to the bar."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        self.progress.update(self.id, note=text)
        if self._line_due():
            done = f"{self.done + self.skipped:,} {self.unit}, {self.rate()}{self.left()}"
            self.display.say(f"{self.title}: {done}  {text}")

    def _line_due(self, late: float = 0.0) -> bool:
        """Whether to print a line instead of a bar; `late`: seconds to wait for a line with metrics first."""
        now = time.monotonic()
        if self.display.live or now <= self._next_line + late or self.done + self.skipped >= self.total:
            return False
        self._next_line = now + LINE_SECONDS - late
        return True

    def left(self) -> str:
        """Time left at the rate so far, as the end of a line."""
        rest = self.total - self.done - self.skipped
        if not self.done or rest <= 0:
            return ""
        seconds = rest / self.per_second()
        return f", {seconds:.0f} s left" if seconds < 90 else f", {seconds / 60:.0f} min left"

    def rate(self) -> str:
        """Units per second so far."""
        speed = self.per_second()
        return f"{speed:,.0f} {self.unit}/s" if speed >= 10 else f"{speed:.2g} {self.unit}/s"

    def per_second(self) -> float:
        """Units per second since the start."""
        return self.done / max(1e-9, time.monotonic() - self.began)

    def summary(self) -> str:
        """Units done, time and rate."""
        seconds = time.monotonic() - self.began
        return f"{self.done + self.skipped:,} {self.unit} in {seconds:.1f} s ({self.rate()})"
