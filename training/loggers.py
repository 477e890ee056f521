"""Where metrics go: metrics.jsonl, one JSON object a line, if there is a folder; wandb when asked.

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
    """Somewhere metrics go."""

    def log(self, metrics: dict[str, Any]) -> None:
        """One line of metrics."""
        ...

    def close(self, summary: dict[str, Any]) -> None:
        """The last word."""
        ...


class MetricsFile:
    """Appends to metrics.jsonl; cut back to a checkpoint's step when a training is resumed."""

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        """Lines of steps beyond `keep_steps`, and a last line that a kill left half-written, are dropped."""
        self.path = path
        if path.exists():
            lines = [line for line in path.read_bytes().splitlines(keepends=True) if _step(line) <= keep_steps]
            write_bytes(path, b"".join(lines))

    def log(self, metrics: dict[str, Any]) -> None:
        """One line; `step` and `rows` say when."""
        with refusing_full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing to do: every line is already there."""


def _step(line: bytes) -> int:
    """The step of a line; beyond all steps for one that is not whole or not readable."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else sys.maxsize
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


class Wandb:
    """The same metrics to a wandb run, whose id is kept in the run's folder so that a resumed training continues it."""

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        """Starts or continues the run.

        Raises:
            SaescopeError: wandb refuses (not logged in, say).
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
                f"wandb cannot start ({reason}); log in, set WANDB_MODE=offline, or drop train.wandb."
            ) from None
        write_json(note, {"id": self.run.id, "project": project})

    def log(self, metrics: dict[str, Any]) -> None:
        """One step's metrics."""
        self.run.log({key: value for key, value in metrics.items() if key != "step"}, step=metrics["step"])

    def close(self, summary: dict[str, Any]) -> None:
        """Record the summary and end the run."""
        self.run.summary.update(summary)
        self.run.finish()
