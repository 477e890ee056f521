"""Rows on their way from the model to the disk, while the model goes on: copies on a stream of their own, writing threads."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from training.activations.sources import row_norms

WRITERS = 6
"""A thread hashes and writes at about 1 GB/s, a model on a GPU gives up to 3."""


@dataclass
class OnTheWay:
    """Rows and their norms that reach host memory by and by."""

    rows: Float[Tensor, "n n_ctx d"]
    norms: Float[Tensor, "n n_ctx"]
    copied: "torch.cuda.Event | None" = None
    source: tuple[Tensor, ...] = ()
    """What is copied, kept until it has been."""

    def arrived(self) -> tuple[Float[Tensor, "n n_ctx d"], Float[Tensor, "n n_ctx"]]:
        """Both on the host; waits for them."""
        if self.copied is not None:
            self.copied.synchronize()
            self.source = ()
        return self.rows, self.norms


def to_host(rows: Float[Tensor, "n n_ctx d"]) -> OnTheWay:
    """Send rows to the host, their norms measured where they are. Rows on the CPU stay as they are, and must not change."""
    norms = row_norms(rows.flatten(0, 1)).view(rows.shape[:2])
    if rows.device.type != "cuda":
        return OnTheWay(rows.cpu(), norms.cpu())
    side = _side(rows.device)
    side.wait_stream(torch.cuda.current_stream(rows.device))
    with torch.cuda.stream(side):
        pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (rows, norms)]
        for there, here in zip(pinned, (rows, norms), strict=True):
            there.copy_(here, non_blocking=True)
        copied = torch.cuda.Event(blocking=True)
        copied.record()
    return OnTheWay(*pinned, copied, (rows, norms))


def _side(device: torch.device) -> "torch.cuda.Stream":
    """One of torch's own pool of streams, of which there are few."""
    return torch.cuda.Stream(device)


class Writers:
    """Threads that write, at most a few files behind; what went wrong in one is raised here. To be used in a `with`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1), thread_name_prefix="writers")
        self._pending: deque[Future[None]] = deque()

    def submit(self, write: Callable[..., None], *args: object) -> None:
        """Have `write(*args)` called; waits while too many are under way."""
        while len(self._pending) > WRITERS:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(write, *args))

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for all; an error of one is raised unless there is another."""
        self._pool.shutdown(wait=True)
        while self._pending and error is None:
            self._pending.popleft().result()
