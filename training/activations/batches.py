"""Shuffled batches that are a pure function of their address.

A *superblock* is a set of blocks (`block_rows` contiguous rows each) drawn at random from all training blocks of an
epoch; its kept rows are permuted in memory and cut into batches, the remainder of less than a batch being dropped for
that epoch. A batch's address (epoch, superblock, j), `data.seed`, the tokens and the mask determine it: to resume is to
know the address. Memory is a superblock's bytes, times those prepared ahead.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.activations.calibration import KeepMask
from training.activations.sources import Source
from training.corpus.tokens import Tokens

CHUNK_ROWS = 16_384
"""Rows read at a time while a superblock is prepared."""


class Address(NamedTuple):
    """Where a batch stands in the stream."""

    epoch: int
    superblock: int
    j: int


FIRST = Address(0, 0, 0)


class Batch(NamedTuple):
    """Rows of activations of every hook, with the numbers of those rows in the corpus."""

    address: Address
    rows: Int64[Tensor, " n_rows"]
    acts: dict[str, Float[Tensor, "n_rows d"]]


class Superblock(NamedTuple):
    """Permuted kept rows of a superblock."""

    epoch: int
    number: int
    rows: Int64[Tensor, " n_rows"]
    acts: dict[str, Float[Tensor, "n_rows d"]]


class Batches:
    """The stream of training batches over a source."""

    def __init__(
        self, source: Source, tokens: Tokens, mask: KeepMask, hooks: Sequence[str], *,
        seed: int, batch_rows: int, superblock_rows: int, block_rows: int,
    ) -> None:
        """`hooks` are those a batch holds."""
        self.source, self.mask, self.hooks = source, mask, tuple(hooks)
        self.seed, self.batch_rows, self.block_rows = seed, batch_rows, block_rows
        per_seq = tokens.n_ctx // block_rows
        training = tokens.sequences(held_out=False)
        self.blocks = (training[:, None] * per_seq + np.arange(per_seq)).reshape(-1)
        self.blocks_per_superblock = max(1, min(superblock_rows // block_rows, len(self.blocks)))
        if self.blocks_per_superblock * block_rows < batch_rows:
            raise SaescopeError(
                f"a batch of {batch_rows} rows does not fit a superblock of {self.blocks_per_superblock * block_rows} "
                f"rows (the corpus has {len(self.blocks) * block_rows} training rows); lower data.batch_rows or give "
                f"more text."
            )
        self.n_superblocks = -(-len(self.blocks) // self.blocks_per_superblock)

    def superblock_bytes(self) -> int:
        """Memory of one superblock, row numbers included."""
        widths = sum(self.source.widths[hook] for hook in self.hooks)
        return self.blocks_per_superblock * self.block_rows * (widths * self.source.itemsize + 8)

    def superblock(self, epoch: int, number: int, stop: threading.Event | None = None) -> Superblock:
        """Read one superblock and permute its kept rows; given up as soon as `stop` is set."""
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.blocks))
        mine = order[number * self.blocks_per_superblock : (number + 1) * self.blocks_per_superblock]
        blocks = self.blocks[np.sort(mine)]
        step = max(1, CHUNK_ROWS // self.block_rows)
        keep = torch.zeros(len(blocks) * self.block_rows, dtype=torch.bool)
        raw: dict[str, Tensor] = {}
        for i in range(0, len(blocks), step):
            if stop is not None and stop.is_set():
                raise CancelledError
            chunk, here = blocks[i : i + step], slice(i * self.block_rows, (i + step) * self.block_rows)
            keep[here] = self.mask.keep(chunk, self.block_rows)
            for hook in self.hooks:
                rows = self.source.rows(hook, chunk, self.block_rows)
                if hook not in raw:
                    raw[hook] = torch.empty(len(keep), rows.shape[1], dtype=rows.dtype)
                raw[hook][here] = rows
        kept = keep.nonzero().squeeze(1)
        order = np.random.default_rng([self.seed, 1, epoch, number]).permutation(len(kept))
        kept = kept[torch.from_numpy(order)]
        numbers = torch.from_numpy(blocks)[kept // self.block_rows] * self.block_rows + kept % self.block_rows
        # one hook at a time, so that no more than one is there twice
        return Superblock(epoch, number, numbers, {hook: raw.pop(hook).index_select(0, kept) for hook in self.hooks})

    def stream(
        self, start: Address = FIRST, *, prefetch: int = 1, rank: int = 0, n_ranks: int = 1
    ) -> Generator[Batch, None, None]:
        """Batches from an address on, without end; rank r of n takes every n-th one, beginning with the r-th."""
        empty = 0
        for block in self._superblocks(start.epoch, start.superblock, prefetch):
            here = (block.epoch, block.number) == (start.epoch, start.superblock)
            n_batches = len(block.rows) // self.batch_rows
            empty = 0 if n_batches else empty + 1
            if empty >= self.n_superblocks:
                raise SaescopeError(
                    f"the mask keeps too few rows for a single batch of {self.batch_rows}; raise data.outlier_multiple, "
                    f"lower data.batch_rows or give more text."
                )
            for j in range(start.j if here else 0, n_batches):
                if j % n_ranks == rank:
                    cut = slice(j * self.batch_rows, (j + 1) * self.batch_rows)
                    acts = {hook: rows[cut] for hook, rows in block.acts.items()}
                    yield Batch(Address(block.epoch, block.number, j), block.rows[cut], acts)

    def _superblocks(self, epoch: int, number: int, prefetch: int) -> Iterator[Superblock]:
        """Superblocks without end, the next `prefetch` of them prepared by a thread meanwhile."""
        count = epoch * self.n_superblocks + number
        stop = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="superblocks") as pool:
            ahead: deque[Future[Superblock]] = deque()
            try:
                while True:
                    while len(ahead) < max(1, prefetch):
                        ahead.append(pool.submit(self.superblock, *divmod(count, self.n_superblocks), stop))
                        count += 1
                    block = ahead.popleft().result()
                    if prefetch:
                        ahead.append(pool.submit(self.superblock, *divmod(count, self.n_superblocks), stop))
                        count += 1
                    yield block
            finally:
                stop.set()
