"""Asynchronous writes of rows from model to disk: copies on a separate CUDA stream, and writer threads."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.activations.sources import row_norms

WRITERS = 6
"""Number of threads: each hashes and writes about 1 GB/s, and a model on a GPU yields up to 3."""


@dataclass
class OnTheWay:
    """Rows and norms that are being copied to host memory."""

    rows: Float[Tensor, "n n_ctx d"]
    norms: Float[Tensor, "n n_ctx"]
    copied: "torch.cuda.Event | None" = None
    source: tuple[Tensor, ...] = ()
    """The tensors being copied, kept alive until the copy is done."""

    def arrived(self) -> tuple[Float[Tensor, "n n_ctx d"], Float[Tensor, "n n_ctx"]]:
        """Wait for the copy; return both on the host."""
        if self.copied is not None:
            self.copied.synchronize()
            self.source = ()
        return self.rows, self.norms


def to_host(rows: Float[Tensor, "n n_ctx d"]) -> OnTheWay:
    """Start copying rows to the host; norms are computed on their device. CPU rows are not copied: don't modify them."""
    norms = row_norms(rows.flatten(0, 1)).view(rows.shape[:2])
    if rows.device.type != "cuda":
        return OnTheWay(rows.cpu(), norms.cpu())
    side = torch.cuda.Stream(rows.device)
    side.wait_stream(torch.cuda.current_stream(rows.device))
    with torch.cuda.stream(side):
        there, there_norms = (torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (rows, norms))
        there.copy_(rows, non_blocking=True)
        there_norms.copy_(norms, non_blocking=True)
        copied = torch.cuda.Event(blocking=True)
        copied.record()
    return OnTheWay(there, there_norms, copied, (rows, norms))


@contextmanager
def writing() -> Iterator[Callable[..., None]]:
    """Context that yields a function to submit writes to a thread pool, with a bounded queue.

    An error in a write is raised by a later submission, or on exit, after all writes.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1), thread_name_prefix="writers") as pool:

        def submit(write: Callable[..., None], *args: object) -> None:
            while len(pending) > WRITERS:
                pending.popleft().result()
            pending.append(pool.submit(write, *args))

        yield submit
        while pending:
            pending.popleft().result()
