"""Where superblocks are kept during training, and how their rows get there.

    Place        training on the CPU: rows are read into memory, and batches are gathered from it
    OnDevice     superblocks fit on the GPU: several threads read rows into pinned memory, which is copied on a separate
                 stream, or rows are computed there; batches are gathered on the GPU
    ThroughHost  they don't fit: they are kept in host memory; batches are gathered into pinned memory and copied on a
                 separate stream, a few ahead

All give the same rows. The host never waits for the streams of model or trainer; only the device does.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.activations.sources import Source
from training.memory import available

PIECE_BYTES = 1 << 24
"""Bytes that one thread reads and copies at a time."""
READERS = 8
BATCHES_AHEAD = 2
_FREE_SHARE = 0.9
"""Usable fraction of a device's free memory; the rest is lost to fragmentation."""


@dataclass
class Buffers:
    """Memory of a superblock, reused for later ones."""

    acts: dict[str, Float[Tensor, "n_rows _"]]
    free: "torch.cuda.Event | None" = field(default=None)
    """Recorded after the last work that reads them; None on the CPU, where work is synchronous."""


@dataclass(frozen=True)
class Loaded:
    """All rows of a superblock, and the indices of the kept ones in permuted order."""

    acts: dict[str, Float[Tensor, "n_rows _"]]
    order: Int64[Tensor, " n_kept"]
    ready: "torch.cuda.Event | None" = None
    """Recorded after the work that produces both."""


class Place:
    """Superblocks in host memory, for training on the CPU; subclasses are for a GPU."""

    name, on_host = "in memory", True

    def instead(self) -> "Place":
        """The place to fall back to if there is too little memory here after all."""
        raise AssertionError("host memory has no fallback")

    def buffers(self, widths: Mapping[str, int], dtypes: Mapping[str, torch.dtype], n_rows: int) -> Buffers:
        """Allocate a superblock of `n_rows` rows."""
        return Buffers({hook: torch.empty(n_rows, d, dtype=dtypes[hook]) for hook, d in widths.items()})

    def working(self) -> AbstractContextManager[object]:
        """Context for work here; on the CPU there are no streams."""
        return nullcontext()

    def read(
        self, source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, into: Buffers,
        stop: threading.Event | None = None,
    ) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Read the rows of these blocks; cancelled when `stop` is set."""
        acts = _first(into, len(blocks) * block_rows)
        in_pieces(source, blocks, block_rows, acts, source.read, stop)
        return acts

    def loaded(self, acts: dict[str, Float[Tensor, "n_rows _"]], order: Int64[Tensor, " n_kept"]) -> Loaded:
        """Combine rows and order into a loaded superblock."""
        return Loaded(acts, order)

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook, gathered on request."""
        for cut in cuts:
            yield {hook: rows.index_select(0, loaded.order[cut]) for hook, rows in loaded.acts.items()}

    def release(self, buffers: Buffers) -> None:
        """Mark buffers as reusable; nothing to wait for on the CPU."""

    def bring(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Move rows here, for use within `working`."""
        return dict(acts)

    def hand_over(self, acts: dict[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Hand the result of work here to the trainer."""
        return acts


class OnDevice(Place):
    """Superblocks on the training GPU."""

    on_host = False

    def __init__(self, device: torch.device) -> None:
        self.device, self.name = device, f"on {device}"
        self.side = _side_stream(device)

    def instead(self) -> Place:
        """Fall back to host memory."""
        torch.cuda.empty_cache()
        return ThroughHost(self.device)

    def buffers(self, widths: Mapping[str, int], dtypes: Mapping[str, torch.dtype], n_rows: int) -> Buffers:
        """Allocate a superblock of `n_rows` rows.

        Raises:
            torch.OutOfMemoryError: it doesn't fit.
        """
        with self.working():
            acts = {h: torch.empty(n_rows, d, dtype=dtypes[h], device=self.device) for h, d in widths.items()}
        return Buffers(acts)

    def working(self) -> AbstractContextManager[object]:
        """Context that runs work on the side stream."""
        return torch.cuda.stream(self.side)

    def read(
        self, source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, into: Buffers,
        stop: threading.Event | None = None,
    ) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Read the rows of these blocks: computed on the device, or copied through pinned memory."""
        acts = _first(into, len(blocks) * block_rows)
        if into.free is not None:
            self.side.wait_event(into.free)

        def copied(blocks: Int64[np.ndarray, " n"], block_rows: int, out: Mapping[str, Tensor]) -> None:
            pinned = {hook: torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True) for hook, rows in out.items()}
            source.read(blocks, block_rows, pinned)
            with self.working():
                for hook, rows in out.items():
                    rows.copy_(pinned[hook], non_blocking=True)
                done = torch.cuda.Event(blocking=True)
                done.record()
            # wait, so that at most one piece per thread is pinned
            done.synchronize()

        in_pieces(source, blocks, block_rows, acts, source.read if source.device.type == "cuda" else copied, stop)
        return acts

    def loaded(self, acts: dict[str, Float[Tensor, "n_rows _"]], order: Int64[Tensor, " n_kept"]) -> Loaded:
        """Combine rows and order, with the order on the device too."""
        return Loaded(acts, order.to(self.device), self.side.record_event())

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook, gathered on the trainer's stream."""
        assert loaded.ready is not None
        _handed({**loaded.acts, "order": loaded.order}, loaded.ready, self.device)
        for cut in cuts:
            yield {hook: rows.index_select(0, loaded.order[cut]) for hook, rows in loaded.acts.items()}

    def release(self, buffers: Buffers) -> None:
        """Mark buffers as reusable after the pending work on the trainer's stream."""
        buffers.free = torch.cuda.current_stream(self.device).record_event()

    def bring(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Copy rows from elsewhere without waiting for the trainer; rows already on the device stay."""
        if any(rows.device == self.device for rows in acts.values()):
            self.side.wait_stream(torch.cuda.default_stream(self.device))
        with self.working():
            return {hook: rows if rows.device == self.device else self._copied(rows) for hook, rows in acts.items()}

    def _copied(self, rows: Float[Tensor, "n_rows _"]) -> Float[Tensor, "n_rows _"]:
        return (rows.pin_memory() if rows.device.type == "cpu" else rows).to(self.device, non_blocking=True)

    def hand_over(self, acts: dict[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Make the trainer's stream wait for the work here."""
        return _handed(acts, self.side.record_event(), self.device)


class ThroughHost(Place):
    """Superblocks in host memory, batches on the training GPU."""

    def __init__(self, device: torch.device, free: int = 0) -> None:
        """`free`: bytes free on the device after what training needs, for the name."""
        self.device = device
        self.name = f"in host memory ({device} has {free / 1e6:,.0f} MB for them), with batches copied to the GPU ahead"
        self.side = _side_stream(device)

    def working(self) -> AbstractContextManager[object]:
        """Context that runs work on the side stream, where a model on a GPU computes rows."""
        return torch.cuda.stream(self.side)

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook; a thread gathers and copies the next few."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            ahead: deque[Future[tuple[dict[str, Tensor], torch.cuda.Event]]] = deque()
            for cut in (*cuts, *[None] * BATCHES_AHEAD):
                if cut is not None:
                    ahead.append(pool.submit(self._copied, loaded, cut))
                if len(ahead) > BATCHES_AHEAD or (cut is None and ahead):
                    yield _handed(*ahead.popleft().result(), self.device)

    def _copied(self, loaded: Loaded, cut: slice) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        order, acts = loaded.order[cut], {}
        with self.working():
            for hook, rows in loaded.acts.items():
                pinned = torch.empty(len(order), rows.shape[1], dtype=rows.dtype, pin_memory=True)
                torch.index_select(rows, 0, order, out=pinned)
                # torch reuses the pinned memory only after this copy
                acts[hook] = pinned.to(self.device, non_blocking=True)
            return acts, self.side.record_event()


def _handed(acts: dict[str, Tensor], done: "torch.cuda.Event", device: torch.device) -> dict[str, Tensor]:
    """Make the current stream wait for `done`, and keep the tensors' memory until that stream has used them."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(done)
    for rows in acts.values():
        rows.record_stream(stream)
    return acts


def _side_stream(device: torch.device) -> "torch.cuda.Stream":
    """A stream for work alongside the trainer's; waits for pending work such as copies of model weights or tensors."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    return side


def place_for(device: torch.device, n_bytes: int, taken: int) -> Place:
    """Choose where to keep `n_bytes` of superblocks, if training also needs `taken` bytes of its device."""
    if device.type != "cuda":
        return Place()
    # memory that torch's allocator has reserved but doesn't use is free, too
    free = available(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return OnDevice(device) if n_bytes <= _FREE_SHARE * free - taken else ThroughHost(device, max(0, free - taken))


def in_pieces(
    source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]],
    read: Callable[[Int64[np.ndarray, " n"], int, Mapping[str, Tensor]], None], stop: threading.Event | None = None,
) -> None:
    """Call `read(blocks, block_rows, out)` for all blocks in pieces, with several threads if rows are stored on the host.

    Raises:
        CancelledError: `stop` was set.
    """
    row_bytes = sum(rows.shape[1] * rows.element_size() for rows in out.values())
    step = max(1, PIECE_BYTES // (row_bytes * block_rows * source.group)) * source.group

    def piece(first: int) -> None:
        if stop is not None and stop.is_set():
            raise CancelledError
        here = slice(first * block_rows, (first + step) * block_rows)
        read(blocks[first : first + step], block_rows, {hook: rows[here] for hook, rows in out.items()})

    firsts = range(0, len(blocks), step)
    if source.computed or source.device.type != "cpu" or len(firsts) == 1:
        for first in firsts:
            piece(first)
    else:
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="readers") as pool:
            list(pool.map(piece, firsts))


def _first(buffers: Buffers, n_rows: int) -> dict[str, Float[Tensor, "n_rows _"]]:
    return {hook: rows[:n_rows] for hook, rows in buffers.acts.items()}
