"""Reporting during training: lines for the loggers, a few metrics next to the progress bar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.schema import Config
from training.display import Task
from training.evaluate import HeldOut
from training.loggers import Logger, MetricsFile, Wandb
from training.trainer import Trainer

SHOWN = ("l0", "fve", "dead")


class Report:
    """Log and evaluate a group of trainers."""

    def __init__(
        self, trainers: Sequence[Trainer], loggers: Sequence[Sequence[Logger]], heldout: HeldOut | None, task: Task
    ) -> None:
        """`loggers` holds the loggers of each trainer, in the same order."""
        self.trainers, self.loggers, self.heldout, self.task = trainers, loggers, heldout, task

    def log(self, n_steps: int) -> None:
        """Log averages over the steps since the last line; show those of the last trainer next to the bar."""
        metrics: dict[str, float] = {}
        for trainer, outs in zip(self.trainers, self.loggers, strict=True):
            metrics = trainer.metrics()
            _write(outs, trainer, n_steps, {**metrics, "tokens_per_s": self.task.per_second()})
        self.task.note({key: metrics[key] for key in SHOWN if key in metrics})

    def evaluate(self, n_steps: int) -> None:
        """Log held-out metrics, if rows are held out."""
        if self.heldout is None:
            return
        for trainer, outs in zip(self.trainers, self.loggers, strict=True):
            measured = self.heldout.measure(trainer.sae, trainer.config.site)
            _write(outs, trainer, n_steps, {f"heldout/{key}": value for key, value in measured.items()})

    def close(self, summaries: Sequence[dict[str, Any]]) -> None:
        """Pass the final held-out metrics to the loggers and close them."""
        for outs, summary in zip(self.loggers, summaries, strict=True):
            for out in outs:
                out.close({f"heldout/{key}": value for key, value in summary["heldout"].items()})


def _write(outs: Sequence[Logger], trainer: Trainer, n_steps: int, values: dict[str, Any]) -> None:
    for out in outs:
        out.log({"step": n_steps, "rows": trainer.rows_seen, **values})


def loggers(member: Config, folder: Path | None, n_steps: int) -> list[Logger]:
    """The loggers of a run, truncated to step `n_steps`; none without a folder."""
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    out: list[Logger] = [MetricsFile(folder / "metrics.jsonl", keep_steps=n_steps)]
    if member.train.wandb is not None:
        out.append(Wandb(member.train.wandb, member.name, folder, member.plain()))
    return out
