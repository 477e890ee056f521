"""What a person sees while waiting: a bar with tokens/s, time left and the main metrics; plain lines where there is no
terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 15
"""How often a line is printed where there is no terminal."""


class Display:
    """Progress bars on stderr. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """One line."""
        (self._progress.console if self._progress else self.console).print(text, markup=False)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "tokens") -> Iterator["Task"]:
        """A stretch of work of `total` units; without a terminal, its beginning and end."""
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
        """A table on stdout, where results belong."""
        table = Table(title=title, title_justify="left", show_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
        if not self.console.quiet:
            # a file or a pipe has no width of its own, and must not be folded to a terminal's default
            Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


class Task:
    """One bar."""

    def __init__(self, display: Display, progress: Progress, task: TaskID, title: str, unit: str) -> None:
        self.display, self.progress, self.id, self.title, self.unit = display, progress, task, title, unit
        self.done, self.skipped, self.began = 0, 0, time.monotonic()
        self._next_line = self.began + LINE_SECONDS

    def skip(self, n: int) -> None:
        """Work done before this start; it does not count towards the rate."""
        self.skipped += n
        self.progress.update(self.id, advance=n)

    def advance(self, n: int) -> None:
        """More of it is done."""
        self.done += n
        self.progress.update(self.id, advance=n, rate=self.rate())
        if not self.display.live and time.monotonic() > self._next_line + LINE_SECONDS:
            self._next_line = time.monotonic()
            self.display.say(f"{self.title}: {self.summary()}")

    def note(self, metrics: dict[str, Any]) -> None:
        """Show a few metrics beside the bar."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        self.progress.update(self.id, note=text)
        if not self.display.live and time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self.display.say(f"{self.title}: {self.done + self.skipped:,} {self.unit}, {self.rate()}  {text}")

    def rate(self) -> str:
        """Units per second so far."""
        return f"{self.per_second():,.0f} {self.unit}/s"

    def per_second(self) -> float:
        """Units per second since the start."""
        return self.done / max(1e-9, time.monotonic() - self.began)

    def summary(self) -> str:
        """What was done and how fast."""
        seconds = time.monotonic() - self.began
        return f"{self.done + self.skipped:,} {self.unit} in {seconds:.1f} s ({self.rate()})"
