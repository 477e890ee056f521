"""Metric loggers: metrics.jsonl (one JSON object per line) if there is a run folder; wandb if configured.

The only file that imports wandb.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sae.errors import SaescopeError
from sae.io.files import refusing_full_disk, write_bytes, write_json


@runtime_checkable
class Logger(Protocol):
    """A destination for metrics."""

    def log(self, metrics: dict[str, Any]) -> None:
        """Log one step's metrics."""
        ...

    def close(self, summary: dict[str, Any]) -> None:
        """Log the final summary and close."""
        ...


class MetricsFile:
    """Append metrics to metrics.jsonl; on resume the file is truncated to the checkpoint's step."""

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        """Open the file; drop lines of steps after `keep_steps` and a last line left half-written by a kill."""
        self.path = path
        if path.exists():
            lines = [line for line in path.read_bytes().splitlines(keepends=True) if _step(line) <= keep_steps]
            write_bytes(path, b"".join(lines))

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line; it includes `step` and `rows`."""
        with refusing_full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing to do: every line is already there."""


def _step(line: bytes) -> int:
    """The step of a line; sys.maxsize if the line is incomplete or unreadable."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else sys.maxsize
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


class Wandb:
    """Log the same metrics to a wandb run; its id is stored in the run folder so that --resume continues it."""

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        """Start or continue the run.

        Raises:
            SaescopeError: wandb cannot start, for example because nobody is logged in.
        """
        import wandb

        note = folder / "wandb.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        settings = wandb.Settings(console="off", silent=True)
        try:
            self.run = wandb.init(
                project=project, name=name, dir=str(folder), config=config, id=known.get("id"), settings=settings,
                resume="allow" if known else None, reinit="create_new",
                # wandb reads its environment once per process; a notebook may set the variable later
                mode=os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]
            )
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SaescopeError(
                f"wandb cannot start ({reason}); log in, set WANDB_MODE=offline, or remove train.wandb."
            ) from None
        write_json(note, {"id": self.run.id, "project": project})

    def log(self, metrics: dict[str, Any]) -> None:
        """Log one step's metrics."""
        self.run.log({key: value for key, value in metrics.items() if key != "step"}, step=metrics["step"])

    def close(self, summary: dict[str, Any]) -> None:
        """Record the summary and end the run."""
        self.run.summary.update(summary)
        self.run.finish()
