"""The parts of a training run, each measured alone at its maximum rate: the model's forward pass, the training step, the
disk, and copies between host and device."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from training.activations.calibration import calibrate
from training.config.schema import Config
from training.sweep_shared import Shared
from training.trainer import Trainer, new_sae

PIECE = 16 * 2**20
"""Bytes per disk request."""
COPIED = 256 * 2**20
"""Bytes per copy between host and device."""


def rate(work: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Units of work per second, where `work` returns its units; runs once untimed, then for at least `seconds`."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    n, began, calls, enough = 0, now(), 0, 1
    while True:
        n, calls = n + work(), calls + 1
        # synchronise rarely, so that the device never waits for the host
        if calls == enough:
            if (took := now() - began) >= seconds:
                return n / took
            enough = calls + max(1, int(calls * min(1.0, seconds / took - 1)))


class Step:
    """A run's training step, on rows that are already on the device."""

    def __init__(
        self, config: Config, shared: Shared, device: torch.device, batches: Sequence[Mapping[str, Tensor]], n_rows: int
    ) -> None:
        """Train on `n_rows` first, to reach the state at which the run was measured."""
        self.trainer = Trainer(config, new_sae(config, calibrate(config.site, shared.mask)), shared.clock, device)
        self.batches = cycle(batches)
        while self.trainer.rows_seen < n_rows:
            self.one()

    def one(self) -> int:
        """Take one step; return its number of rows."""
        batch = next(self.batches)
        self.trainer.step(batch)
        return len(next(iter(batch.values())))


@torch.no_grad()
def forward_rate(network: nn.Module, n_seqs: int, n_ctx: int, d_vocab: int, device: torch.device, seconds: float) -> float:
    """Tokens per second of a bare Hugging Face network's forward pass, with `n_seqs` sequences at a time."""
    ids = torch.randint(0, d_vocab, (n_seqs, n_ctx), generator=torch.Generator().manual_seed(0)).to(device)

    def one() -> int:
        network(input_ids=ids, use_cache=False)
        return ids.numel()

    return rate(one, device, seconds)


def read_rate(files: Sequence[Path], n_threads: int, seconds: float) -> float:
    """Bytes per second when reading these files in large requests with `n_threads` threads."""
    buffers = [bytearray(PIECE) for _ in range(n_threads)]
    # each thread reads its own files, or its part of a file
    spans = [span for file in files for span in _spans(file)]

    def some(thread: int) -> int:
        n = 0
        for file, start, n_bytes in spans[thread::n_threads]:
            with file.open("rb", buffering=0) as opened:
                opened.seek(start)
                n += opened.readinto(memoryview(buffers[thread])[:n_bytes]) or 0
        return n

    with ThreadPoolExecutor(n_threads) as pool:
        return rate(lambda: sum(pool.map(some, range(n_threads))), torch.device("cpu"), seconds)


def _spans(file: Path) -> Iterator[tuple[Path, int, int]]:
    size = file.stat().st_size
    for start in range(0, size, PIECE):
        yield file, start, min(PIECE, size - start)


def write_rate(folder: Path, n_bytes: int, n_threads: int, seconds: float) -> float:
    """Bytes per second when writing files of `n_bytes`, including fsync."""
    piece = os.urandom(min(PIECE, n_bytes))

    def one(thread: int) -> int:
        path, n = folder / f"written-{thread}", 0
        with path.open("wb", buffering=0) as file:
            while n < n_bytes:
                n += file.write(piece)
            os.fsync(file.fileno())
        path.unlink()
        return n

    with ThreadPoolExecutor(n_threads) as pool:
        return rate(lambda: sum(pool.map(one, range(n_threads))), torch.device("cpu"), seconds)


def copy_rates(device: torch.device, seconds: float) -> dict[str, float]:
    """Bytes per second from pinned memory to the device and back; empty on a CPU."""
    if device.type != "cuda":
        return {}
    host = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPIED, dtype=torch.uint8, device=device)

    def copied(to: Tensor, of: Tensor) -> int:
        to.copy_(of, non_blocking=True)
        return COPIED

    return {
        "to_device": rate(lambda: copied(there, host), device, seconds),
        "from_device": rate(lambda: copied(host, there), device, seconds),
    }
