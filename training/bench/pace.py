"""How fast a training goes once it runs steadily, taken from its stream of batches, as `training.run.run` reads it."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.activations.batches import FIRST, Address, Batch
from training.config.schema import Config
from training.display import Display
from training.run import run
from training.shared import BatchStream, Shared

Opened = Callable[[Sequence[Config], Display], Shared]
"""Opens the rows of a training, as `training.run.run` takes it."""

PATIENCE = 4
"""A stretch begins, and is cut off, after so many times the seconds asked for, though its superblock has not ended."""
N_FIRST = 4
"""Steps in which kernels are compiled and captured, which no patience is lost on."""


class Enough(Exception):
    """The training has been measured, and ends here."""


class Watched:
    """A stream of batches that times a stretch of whole superblocks, and then ends the training.

    The stretch begins with a superblock behind the first two, which stood ready when training began, and behind
    `warmup_rows`. At both ends the device has done all that was asked of it.
    """

    whole: bool | None = None
    """Whether the stretch was of whole superblocks; otherwise it was cut off."""

    def __init__(self, batches: BatchStream, device: torch.device, *, seconds: float, warmup_rows: int, keep: int) -> None:
        """`seconds` is how long the stretch is at least; the first `keep` batches are kept on the device."""
        self.batches, self.device, self.seconds = batches, device, seconds
        self.warmup_rows, self.keep = warmup_rows, keep
        self.kept: list[dict[str, Tensor]] = []
        self.n_rows = self.n_batches = self.n_superblocks = 0
        self.opened = time.perf_counter()
        self.began: tuple[float, int] | None = None
        self.took: tuple[float, int] | None = None

    def stream(
        self, start: Address = FIRST, *, prefetch: int = 1, rank: int = 0, n_ranks: int = 1
    ) -> Generator[Batch, None, None]:
        """The batches, until there is enough."""
        last: tuple[int, int] | None = None
        with closing(self.batches.stream(start, prefetch=prefetch, rank=rank, n_ranks=n_ranks)) as batches:
            for batch in batches:
                fresh = last != batch.address[:2]
                last = batch.address[:2]
                self.n_superblocks += fresh
                self._look(fresh)
                if len(self.kept) < self.keep:
                    # copies: a stream may use the memory of a batch again
                    self.kept.append({hook: rows.to(self.device, copy=True) for hook, rows in batch.acts.items()})
                self.n_rows, self.n_batches = self.n_rows + len(batch.rows), self.n_batches + 1
                yield batch

    def _look(self, fresh: bool) -> None:
        """Begin or end the stretch before the next batch, which is the first of its superblock if it is `fresh`."""
        if self.n_batches <= N_FIRST:
            self.opened = time.perf_counter()
        since = time.perf_counter() - (self.began[0] if self.began else self.opened)
        late = since > PATIENCE * self.seconds
        if self.began is None:
            if (fresh and self.n_superblocks > 2 and self.n_rows >= self.warmup_rows) or (late and self.n_rows):
                self.began, self.whole = (self._now(), self.n_rows), not late
        elif late or (fresh and since >= self.seconds):
            self.whole = bool(self.whole) and fresh
            self.took = self._now() - self.began[0], self.n_rows - self.began[1]
            raise Enough

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def facts(self) -> dict[str, Any]:
        """How long the stretch was, and what came before it."""
        assert self.took is not None, "the training ended before it was measured"
        seconds, n_rows = self.took
        return {"n_warmup_rows": self.n_warmup, "n_rows": n_rows, "seconds": seconds, "whole_superblocks": self.whole}

    @property
    def n_warmup(self) -> int:
        """Rows before the stretch."""
        assert self.began is not None
        return self.began[1]

    @property
    def rows_per_s(self) -> float:
        """Rows per second of the stretch."""
        facts = self.facts()
        return float(facts["n_rows"] / facts["seconds"])


def paced(
    config: Config, folder: Path, opened: Opened, device: torch.device, *, seconds: float, keep: int
) -> tuple[Watched, Shared]:
    """Train as `training.train` does, in `folder`, for as long as it takes to measure.

    Args:
        config: of the training, its budget longer than that.
        folder: of the run.
        opened: opens its rows.
        device: where it trains.
        seconds: that are measured, behind as many rows as it takes until a feature can be dead.
        keep: batches to keep.

    Returns:
        The stream that was watched, and what the training had opened.
    """
    found: list[tuple[Watched, Shared]] = []

    def watched(members: Sequence[Config], display: Display) -> Shared:
        shared = opened(members, display)
        warmup_rows = shared.clock.shortest(config.train.dead_window)
        watch = Watched(shared.batches, device, seconds=seconds, warmup_rows=warmup_rows, keep=keep)
        found.append((watch, shared))
        return replace(shared, batches=watch)

    with suppress(Enough):
        run([config], [folder], watched, Display(quiet=True))
    return found[0]
