"""Read runs/ without torch, during training or after a kill.

A run is a folder with a `config.yaml`: runs/NAME, or runs/NAME/MEMBER for a member of a sweep. A `summary.json` marks it
as finished. Unreadable files are recorded in `Run.problems` and never raise: one broken run must not hide the others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae.errors import SaescopeError, first_line
from sae.units import Duration
from training.config.yaml12 import load_yaml

Status = Literal["training", "finished", "interrupted", "imported"]
Line = Mapping[str, Any]
"""One line of metrics.jsonl: `step`, `rows` and metrics."""

QUIET_S = 60.0
"""A run that has been silent for this long (s) and for `LATE` times its logging interval counts as interrupted."""
LATE = 10.0
SLOW_S = 15 * 60.0
"""The limit (s) for phases without logging: before the first line (caching) and after the last (evaluation)."""
_LARGEST = 1e300
_READ = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Run:
    """A snapshot of one run."""

    name: str
    """Path relative to the runs folder, with a slash for a member of a sweep."""
    folder: Path
    finished: bool
    config: Mapping[str, Any]
    """The resolved config; empty if it can't be read."""
    summary: Mapping[str, Any]
    """Held-out figures; empty until the run has finished."""
    lines: Sequence[Line]
    """Complete lines of metrics.jsonl, sorted by rows."""
    updated: float
    """Time of the last write, in seconds since the epoch."""
    problems: tuple[str, ...] = ()
    """A message for each file that can't be read."""

    @property
    def n_rows(self) -> int:
        """Training rows so far; 0 if unknown."""
        logged = self.lines[-1]["rows"] if self.lines else 0
        return int(number(self.summary.get("n_rows_trained")) or logged)

    @property
    def imported(self) -> bool:
        """Whether the SAE was imported, so that its training is unknown."""
        return bool(self.summary.get("imported"))

    @property
    def through(self) -> float | None:
        """Share of the budget completed, 0 to 1; None if unknown, or if the run was imported."""
        if self.imported:
            return None
        if self.finished:
            return 1.0
        budget = _budget_rows(self.config, self.lines)
        return min(1.0, self.n_rows / budget) if budget and self.lines else None

    def status(self, now: float) -> Status:
        """The run's status; a run that has been silent for too long counts as interrupted.

        Args:
            now: seconds since the epoch.
        """
        if self.finished:
            return "imported" if self.imported else "finished"
        return "interrupted" if now - self.updated > _patience(self.config, self.lines) else "training"

    def latest(self, metric: str) -> float | None:
        """The last value of a metric; for held-out metrics of a finished run, the summary's value."""
        after = number(section(self.summary, "heldout").get(metric.removeprefix("heldout/")))
        if metric.startswith("heldout/") and after is not None:
            return after
        values = series(self.lines, metric)[1]
        return values[-1] if values else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of the value from `latest`; None if there are too few documents for one."""
        name, after = metric.removeprefix("heldout/"), section(self.summary, "heldout")
        lines = [line.get(f"{metric}_interval") for line in self.lines if number(line.get(metric)) is not None]
        found = lines if number(after.get(name)) is None else [after.get(f"{name}_interval")]
        return _bounds(found[-1]) if found else None


def find(root: Path) -> list[Run]:
    """All runs in `root`, most recently updated first; empty if the folder doesn't exist."""
    return newest_first([read(root, folder) for folder in folders(root)])


def newest_first(runs: Sequence[Run]) -> list[Run]:
    """Sort runs, most recently updated first."""
    return sorted(runs, key=lambda run: (-run.updated, run.name))


def folders(root: Path) -> list[Path]:
    """Run folders in `root`, up to two levels deep, by name; symlinks out of `root` are ignored."""
    configs = [*root.glob("*/config.yaml"), *root.glob("*/*/config.yaml")]
    inside = root.resolve()
    return sorted(c.parent for c in configs if c.resolve().is_relative_to(inside) and not c.parent.name.startswith("."))


def stamp(folder: Path) -> tuple[int, ...]:
    """A value that changes when a run changes: sizes and times of the files used by `read`."""
    return tuple(number for name in _READ for number in _stat(folder / name))


def read(root: Path, folder: Path) -> Run:
    """Read one run."""
    problems: list[str] = []
    config = _read_config(folder / "config.yaml", problems)
    summary = _read_summary(folder / "summary.json", problems)
    lines = read_metrics(folder / "metrics.jsonl", problems)
    updated = max(_stat(folder / name)[1] for name in _READ) / 1e9
    finished = (folder / "summary.json").exists()
    return Run(str(folder.relative_to(root)), folder, finished, config, summary, lines, updated, tuple(problems))


def read_metrics(path: Path, problems: list[str]) -> list[Line]:
    """Read a metrics.jsonl that may still be growing; a last line without newline is ignored.

    Args:
        path: the file; may not exist.
        problems: gets a message if complete lines can't be read.
    """
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror}).")
        return []
    lines = [line for line in map(_line, whole) if line is not None]
    if len(lines) < len(whole):
        problems.append(f"{len(whole) - len(lines)} of {len(whole)} lines of {path.name} cannot be read.")
    return sorted(lines, key=lambda line: line["rows"])


def series(lines: Sequence[Line], metric: str) -> tuple[list[float], list[float]]:
    """The rows at which a metric was logged, and its values."""
    points = [(float(line["rows"]), value) for line in lines if (value := number(line.get(metric))) is not None]
    return [rows for rows, _ in points], [value for _, value in points]


def intervals(lines: Sequence[Line], metric: str) -> list[tuple[float, float]] | None:
    """The 95 % intervals of a metric's values; None unless every value has one."""
    found = [_bounds(line.get(f"{metric}_interval")) for line in lines if number(line.get(metric)) is not None]
    known = [bounds for bounds in found if bounds is not None]
    return known if found and len(known) == len(found) else None


def metrics(runs: Sequence[Run]) -> list[str]:
    """All metrics that can be plotted, losses first, held-out ones last."""
    names = {
        key for run in runs for line in run.lines for key, value in line.items()
        if number(value) is not None and key not in ("step", "rows") and not key.startswith("heldout/n_")
    }
    return sorted(names, key=lambda name: (name.startswith("heldout/"), not name.startswith("loss/"), name))


def section(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config or summary; empty if it is missing or not a mapping."""
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def number(value: object) -> float | None:
    """A finite number; None for anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) <= _LARGEST else None


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a config to dotted keys and values as text."""
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for key, value in _leaves(config, "")}


def compare(configs: Sequence[Mapping[str, Any]], *, only_differences: bool) -> list[tuple[str, list[str]]]:
    """Each dotted key with its value in every config, `–` if missing."""
    all_flat = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in all_flat for key in one)
    rows = [(key, [one.get(key, "–") for one in all_flat]) for key in keys if key != "name"]
    return [(key, values) for key, values in rows if not only_differences or len(set(values)) > 1]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{i}")
    else:
        yield path, value


def _line(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and number(line.get("rows")) is not None else None


def _read_config(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        value = load_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, ValueError, SaescopeError) as error:
        problems.append(f"{path.name} cannot be read ({first_line(error)}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a mapping.")
        return {}
    return value


def _read_summary(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read ({first_line(error)}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object.")
        return {}
    return value


def _bounds(interval: object) -> tuple[float, float] | None:
    """The two ends of an interval; None for anything else."""
    ends = [number(end) for end in interval] if isinstance(interval, list) else []
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def _stat(path: Path) -> tuple[int, int]:
    """Size (bytes) and modification time (ns) of a file; zeros if it doesn't exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _patience(config: Mapping[str, Any], lines: Sequence[Line]) -> float:
    """Seconds of silence after which a training without a summary counts as interrupted."""
    budget = _budget_rows(config, lines)
    trained = [line for line in lines if number(line.get("tokens_per_s"))]
    if len(trained) < 2 or (budget and lines[-1]["rows"] >= 0.98 * budget):
        return SLOW_S
    interval_s = (trained[-1]["rows"] - trained[-2]["rows"]) / trained[-1]["tokens_per_s"]
    return max(QUIET_S, LATE * interval_s)


def _budget_rows(config: Mapping[str, Any], lines: Sequence[Line]) -> float | None:
    """Length of the training in rows; if it depends on the corpus, estimated from the spacing of log lines."""
    train, batch_rows = section(config, "train"), section(config, "data").get("batch_rows")
    budget, log_every = _duration(train.get("budget")), _duration(train.get("log_every"))
    if budget is not None and isinstance(batch_rows, int) and budget.unit in ("tokens", "steps"):
        return float(budget.rows(budget_rows=0, batch_rows=batch_rows, epoch_rows=0))
    trained = [line["rows"] for line in lines if "tokens_per_s" in line]
    if log_every is None or log_every.unit != "%" or not log_every.value or not trained:
        return None
    return 100 * trained[0] / log_every.value


def _duration(text: object) -> Duration | None:
    try:
        return Duration.parse(text)
    except ValueError:
        return None
