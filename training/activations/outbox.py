"""Rows on their way from model to disk, while the model goes on: copies on a stream of their own, and writing threads."""

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
    """While open, calls handed to what this gives are made by threads, which are at most a few behind.

    What goes wrong in one is raised by a later one, or at the end, when all have been made.
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
