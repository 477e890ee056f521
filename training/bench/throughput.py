"""Measure the steady-state throughput of a training run, by timing the stream of batches that `training.run.run` reads."""

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
from training.sweep_shared import BatchStream, Shared

Opened = Callable[[Sequence[Config], Display], Shared]
"""Opens the rows of a run, as in `training.run.run`."""

PATIENCE = 4
"""After this many times the requested seconds, timing starts or stops even within a superblock."""
N_FIRST = 4
"""First steps, which compile and capture kernels and don't count for `PATIENCE`."""


class Enough(Exception):
    """Stops a run once it has been measured."""


class Watched:
    """A stream of batches that times a number of whole superblocks, and then stops the run.

    Timing starts with a superblock after the first two, which were prefetched before training, and after `warmup_rows`. The
    device is synchronised at the start and at the end.
    """

    whole: bool | None = None
    """Whether whole superblocks were timed; otherwise timing was cut off."""

    def __init__(self, batches: BatchStream, device: torch.device, *, seconds: float, warmup_rows: int, keep: int) -> None:
        """`seconds`: minimum time to measure. The first `keep` batches are kept on the device."""
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
        """The batches, until the run has been measured."""
        last: tuple[int, int] | None = None
        with closing(self.batches.stream(start, prefetch=prefetch, rank=rank, n_ranks=n_ranks)) as batches:
            for batch in batches:
                fresh = last != batch.address[:2]
                last = batch.address[:2]
                self.n_superblocks += fresh
                self._look(fresh)
                if len(self.kept) < self.keep:
                    # copy: the stream may reuse a batch's memory
                    self.kept.append({hook: rows.to(self.device, copy=True) for hook, rows in batch.acts.items()})
                self.n_rows, self.n_batches = self.n_rows + len(batch.rows), self.n_batches + 1
                yield batch

    def _look(self, fresh: bool) -> None:
        """Start or stop timing before the next batch; `fresh`: it is the first of its superblock."""
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
        """What was timed: rows, seconds, and warm-up rows before."""
        assert self.took is not None, "the training ended before it was measured"
        seconds, n_rows = self.took
        return {"n_warmup_rows": self.n_warmup, "n_rows": n_rows, "seconds": seconds, "whole_superblocks": self.whole}

    @property
    def n_warmup(self) -> int:
        """Rows before timing started."""
        assert self.began is not None
        return self.began[1]

    @property
    def rows_per_s(self) -> float:
        """Measured rows per second."""
        facts = self.facts()
        return float(facts["n_rows"] / facts["seconds"])


def paced(
    config: Config, folder: Path, opened: Opened, device: torch.device, *, seconds: float, keep: int
) -> tuple[Watched, Shared]:
    """Train like `training.train`, in `folder`, until the run has been measured.

    Args:
        config: the run's config, with a budget that isn't reached.
        folder: the run's folder.
        opened: opens its rows.
        device: device to train on.
        seconds: time to measure, after the first dead window.
        keep: number of batches to keep.

    Returns:
        The timed stream, and the data of the run.
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
