"""Where superblocks lie while they are trained on, and how their rows get there.

    Place        the CPU trains: rows are read into memory, and batches are gathered from it
    OnDevice     superblocks fit on the GPU: rows are read into pinned memory by several threads and copied on a stream of
                 their own, or computed there; batches are gathered on the GPU
    ThroughHost  they do not fit: they lie in host memory, and batches are gathered into pinned memory and copied on a
                 stream of their own, a few ahead of need

All give the same rows. Nothing here is the model's or the trainer's: work on their streams is only waited for on the
device, never by the host.
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
"""Read by one thread at a time, and copied together."""
READERS = 8
BATCHES_AHEAD = 2
_FREE_SHARE = 0.9
"""Of the free memory of a device; the rest is lost between the pieces that its allocator hands out."""


@dataclass
class Buffers:
    """Memory of a superblock, used again for another."""

    acts: dict[str, Float[Tensor, "n_rows _"]]
    free: "torch.cuda.Event | None" = field(default=None)
    """Behind the last work that reads them; None on the CPU, where such work is done when it has returned."""


@dataclass(frozen=True)
class Loaded:
    """Kept rows: all rows of the blocks, and the positions of the kept ones among them in their permuted order."""

    acts: dict[str, Float[Tensor, "n_rows _"]]
    order: Int64[Tensor, " n_kept"]
    ready: "torch.cuda.Event | None" = None
    """Behind the work that makes both."""


class Place:
    """Superblocks in memory, for a training on the CPU; on a GPU the two below stand for it."""

    name, on_host = "in memory", True

    def instead(self) -> "Place":
        """Where superblocks go if there is too little memory here after all."""
        raise AssertionError("memory of the host runs out in other ways")

    def buffers(self, widths: Mapping[str, int], dtypes: Mapping[str, torch.dtype], n_rows: int) -> Buffers:
        """Memory for a superblock of `n_rows` rows."""
        return Buffers({hook: torch.empty(n_rows, d, dtype=dtypes[hook]) for hook, d in widths.items()})

    def working(self) -> AbstractContextManager[object]:
        """Nothing to order."""
        return nullcontext()

    def read(
        self, source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, into: Buffers,
        stop: threading.Event | None = None,
    ) -> dict[str, Float[Tensor, "n_rows _"]]:
        """The rows of these blocks; given up as soon as `stop` is set."""
        acts = _first(into, len(blocks) * block_rows)
        in_pieces(source, blocks, block_rows, acts, source.read, stop)
        return acts

    def loaded(self, acts: dict[str, Float[Tensor, "n_rows _"]], order: Int64[Tensor, " n_kept"]) -> Loaded:
        """As they are."""
        return Loaded(acts, order)

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook, gathered when they are asked for."""
        for cut in cuts:
            yield {hook: rows.index_select(0, loaded.order[cut]) for hook, rows in loaded.acts.items()}

    def release(self, buffers: Buffers) -> None:
        """Nothing to wait for."""

    def bring(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Rows that were given from elsewhere, for work here (`working`)."""
        return dict(acts)

    def hand_over(self, acts: dict[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """The outcome of work here, for the trainer."""
        return acts


class OnDevice(Place):
    """Superblocks on the GPU that trains."""

    on_host = False

    def __init__(self, device: torch.device) -> None:
        self.device, self.name = device, f"on {device}"
        self.side = _side_stream(device)

    def instead(self) -> Place:
        """Host memory."""
        torch.cuda.empty_cache()
        return ThroughHost(self.device)

    def buffers(self, widths: Mapping[str, int], dtypes: Mapping[str, torch.dtype], n_rows: int) -> Buffers:
        """Memory for a superblock of `n_rows` rows.

        Raises:
            torch.OutOfMemoryError: there is less.
        """
        with self.working():
            acts = {h: torch.empty(n_rows, d, dtype=dtypes[h], device=self.device) for h, d in widths.items()}
        return Buffers(acts)

    def working(self) -> AbstractContextManager[object]:
        """The stream of all that is done here."""
        return torch.cuda.stream(self.side)

    def read(
        self, source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, into: Buffers,
        stop: threading.Event | None = None,
    ) -> dict[str, Float[Tensor, "n_rows _"]]:
        """The rows of these blocks, computed here or copied through pinned memory."""
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
            # so that no more than a piece for each thread is pinned
            done.synchronize()

        in_pieces(source, blocks, block_rows, acts, source.read if source.device.type == "cuda" else copied, stop)
        return acts

    def loaded(self, acts: dict[str, Float[Tensor, "n_rows _"]], order: Int64[Tensor, " n_kept"]) -> Loaded:
        """With the order on the device, too."""
        return Loaded(acts, order.to(self.device), self.side.record_event())

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook, gathered on the trainer's stream."""
        assert loaded.ready is not None
        _handed({**loaded.acts, "order": loaded.order}, loaded.ready, self.device)
        for cut in cuts:
            yield {hook: rows.index_select(0, loaded.order[cut]) for hook, rows in loaded.acts.items()}

    def release(self, buffers: Buffers) -> None:
        """They are written again behind what the trainer's stream still does with them."""
        buffers.free = torch.cuda.current_stream(self.device).record_event()

    def bring(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """Those that lie here stay; others are copied without waiting for what the trainer does."""
        if any(rows.device == self.device for rows in acts.values()):
            self.side.wait_stream(torch.cuda.default_stream(self.device))
        with self.working():
            return {hook: rows if rows.device == self.device else self._copied(rows) for hook, rows in acts.items()}

    def _copied(self, rows: Float[Tensor, "n_rows _"]) -> Float[Tensor, "n_rows _"]:
        return (rows.pin_memory() if rows.device.type == "cpu" else rows).to(self.device, non_blocking=True)

    def hand_over(self, acts: dict[str, Float[Tensor, "n_rows _"]]) -> dict[str, Float[Tensor, "n_rows _"]]:
        """The trainer's stream goes on behind the work here."""
        return _handed(acts, self.side.record_event(), self.device)


class ThroughHost(Place):
    """Superblocks in host memory, batches on the GPU that trains."""

    def __init__(self, device: torch.device, free: int = 0) -> None:
        """`free` are the bytes of the device beside what training takes, for the name."""
        self.device = device
        self.name = f"in memory ({device} has {free / 1e6:,.0f} MB for them), their batches copied there ahead of need"
        self.side = _side_stream(device)

    def working(self) -> AbstractContextManager[object]:
        """A model on a GPU computes rows on this stream."""
        return torch.cuda.stream(self.side)

    def batches(self, loaded: Loaded, cuts: Sequence[slice]) -> Generator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Rows by hook, the next few gathered and copied by a thread meanwhile."""
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
                # torch gives the pinned memory out again only behind this copy
                acts[hook] = pinned.to(self.device, non_blocking=True)
            return acts, self.side.record_event()


def _handed(acts: dict[str, Tensor], done: "torch.cuda.Event", device: torch.device) -> dict[str, Tensor]:
    """Have the current stream wait for `done`; torch keeps the memory of these until that stream is through with them."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(done)
    for rows in acts.values():
        rows.record_stream(stream)
    return acts


def _side_stream(device: torch.device) -> "torch.cuda.Stream":
    """A stream for work beside the trainer's, behind what is under way now: the model's weights, the user's tensors."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    return side


def place_for(device: torch.device, n_bytes: int, taken: int) -> Place:
    """Where `n_bytes` of superblocks go, if training takes `taken` bytes of its device besides."""
    if device.type != "cuda":
        return Place()
    # what torch's allocator holds and does not use is free, too
    free = available(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return OnDevice(device) if n_bytes <= _FREE_SHARE * free - taken else ThroughHost(device, max(0, free - taken))


def in_pieces(
    source: Source, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]],
    read: Callable[[Int64[np.ndarray, " n"], int, Mapping[str, Tensor]], None], stop: threading.Event | None = None,
) -> None:
    """Call `read(blocks, block_rows, out)` for all blocks in pieces, by several threads if rows lie on the host.

    Raises:
        CancelledError: `stop` was set meanwhile.
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
