"""Shuffled batches that are a pure function of their address.

A *superblock* is a set of blocks (`block_rows` contiguous rows each) drawn at random from all training blocks of an epoch.
Its kept rows are permuted and cut into batches; a remainder smaller than a batch is dropped for that epoch. A batch is
determined by its address (epoch, superblock, j), `data.seed`, the tokens and the mask, so the address is enough to resume.
Memory use is (1 + prefetch) superblocks: rows are read once, in corpus order, and gathered only when a batch is needed.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.activations.calibration import KeepMask
from training.activations.sources import Source
from training.activations.superblock_storage import Buffers, Loaded, Place
from training.corpus.tokens import Tokens


class Address(NamedTuple):
    """The position of a batch in the stream."""

    epoch: int
    superblock: int
    j: int


FIRST = Address(0, 0, 0)


class Batch(NamedTuple):
    """Activations of every hook, with the corpus indices of the rows."""

    address: Address
    rows: Int64[Tensor, " n_rows"]
    acts: dict[str, Float[Tensor, "n_rows d"]]


class Superblock(NamedTuple):
    """A loaded superblock."""

    epoch: int
    number: int
    rows: Int64[Tensor, " n_kept"]
    """Corpus indices of the kept rows, in permuted order."""
    loaded: Loaded
    buffers: Buffers


class Batches:
    """The stream of training batches over a source."""

    def __init__(
        self, source: Source, tokens: Tokens, mask: KeepMask, hooks: Sequence[str], *,
        seed: int, batch_rows: int, superblock_rows: int, block_rows: int, say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: source of the rows.
            tokens: their tokens.
            mask: which rows are kept.
            hooks: hooks in a batch.
            seed: seed of the shuffling.
            batch_rows: rows per batch.
            superblock_rows: maximum number of rows shuffled together.
            block_rows: contiguous rows that are read together.
            say: prints a message if superblocks cannot be kept where planned.
        """
        self.place = Place()
        self.source, self.mask, self.hooks = source, mask, tuple(hooks)
        self.seed, self.batch_rows, self.block_rows = seed, batch_rows, block_rows
        self.say = say
        per_seq = tokens.n_ctx // block_rows
        training = tokens.sequences(held_out=False)
        self.blocks = (training[:, None] * per_seq + np.arange(per_seq)).reshape(-1)
        self.blocks_per_superblock = max(1, min(superblock_rows // block_rows, len(self.blocks)))
        if self.blocks_per_superblock * block_rows < batch_rows:
            raise SaescopeError(
                f"a batch of {batch_rows} rows doesn't fit in a superblock of {self.blocks_per_superblock * block_rows} "
                f"rows (the corpus has {len(self.blocks) * block_rows} training rows); lower data.batch_rows or add "
                f"more text."
            )
        self.n_superblocks = -(-len(self.blocks) // self.blocks_per_superblock)

    @property
    def superblock_rows(self) -> int:
        """Rows of a superblock, before masking."""
        return self.blocks_per_superblock * self.block_rows

    def superblock_bytes(self) -> int:
        """Memory of one superblock in bytes, row indices included."""
        row_bytes = sum(self.source.widths[hook] * self.source.dtypes[hook].itemsize for hook in self._read_hooks())
        return self.superblock_rows * (row_bytes + 8)

    def _read_hooks(self) -> tuple[str, ...]:
        """The hooks of a batch, plus the mask's hooks if their norms are only known after running the model."""
        return tuple(dict.fromkeys((*self.hooks, *(self.mask.limits if self.source.computed else ()))))

    def _buffers(self, n: int) -> list[Buffers]:
        """Allocate `n` superblocks; fall back to another place if there is too little memory."""
        widths = {hook: self.source.widths[hook] for hook in self._read_hooks()}
        try:
            return [self.place.buffers(widths, self.source.dtypes, self.superblock_rows) for _ in range(n)]
        except torch.OutOfMemoryError:
            self.place = self.place.instead()
            self.say(f"the device has less free memory than before; superblocks are now {self.place.name}")
            return self._buffers(n)

    def superblock(
        self, epoch: int, number: int, buffers: Buffers | None = None, stop: threading.Event | None = None
    ) -> Superblock:
        """Read one superblock and permute its kept rows; cancelled when `stop` is set."""
        place, buffers = self.place, buffers or self._buffers(1)[0]
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.blocks))
        mine = order[number * self.blocks_per_superblock : (number + 1) * self.blocks_per_superblock]
        blocks = self.blocks[np.sort(mine)]
        with place.working():
            acts = place.read(self.source, blocks, self.block_rows, buffers, stop)
            hooks = dict.fromkeys((*self.hooks, *self.mask.limits))
            norms = {hook: self.source.norms(hook, blocks, self.block_rows, acts.get(hook)) for hook in hooks}
            kept = self.mask.keep(blocks, self.block_rows, norms).nonzero().squeeze(1)
            order = np.random.default_rng([self.seed, 1, epoch, number]).permutation(len(kept))
            kept = kept[torch.from_numpy(order)]
            numbers = torch.from_numpy(blocks)[kept // self.block_rows] * self.block_rows + kept % self.block_rows
            loaded = place.loaded({hook: acts[hook] for hook in self.hooks}, kept)
        return Superblock(epoch, number, numbers, loaded, buffers)

    def stream(
        self, start: Address = FIRST, *, prefetch: int = 1, rank: int = 0, n_ranks: int = 1
    ) -> Generator[Batch, None, None]:
        """Endless batches starting at an address; rank r of n gets the r-th of n equal parts of each.

        So an address means the same rows for any number of ranks. `n_ranks` must divide `batch_rows`.
        """
        assert self.batch_rows % n_ranks == 0, (self.batch_rows, n_ranks)
        n_mine = self.batch_rows // n_ranks
        empty = 0
        for block in self._superblocks(start.epoch, start.superblock, prefetch):
            here = (block.epoch, block.number) == (start.epoch, start.superblock)
            n_batches = len(block.rows) // self.batch_rows
            empty = 0 if n_batches else empty + 1
            if empty >= self.n_superblocks:
                raise SaescopeError(
                    f"the mask keeps too few rows for a single batch of {self.batch_rows}; increase data.outlier_multiple, "
                    f"lower data.batch_rows or add more text."
                )
            mine = range(start.j if here else 0, n_batches)
            begins = [j * self.batch_rows + rank * n_mine for j in mine]
            cuts = [slice(begin, begin + n_mine) for begin in begins]
            with closing(self.place.batches(block.loaded, cuts)) as batches:
                for j, cut, acts in zip(mine, cuts, batches, strict=True):
                    yield Batch(Address(block.epoch, block.number, j), block.rows[cut], acts)

    def _superblocks(self, epoch: int, number: int, prefetch: int) -> Iterator[Superblock]:
        """Endless superblocks; a thread prepares the next `prefetch` of them.

        Buffers of used superblocks are recycled.
        """
        count = epoch * self.n_superblocks + number
        stop = threading.Event()
        free = self._buffers(1 + prefetch)
        with ThreadPoolExecutor(1, thread_name_prefix="superblocks") as pool:
            ahead: deque[Future[Superblock]] = deque()
            try:
                while True:
                    while free:
                        at = divmod(count, self.n_superblocks)
                        ahead.append(pool.submit(self.superblock, *at, free.pop(), stop))
                        count += 1
                    block = ahead.popleft().result()
                    yield block
                    self.place.release(block.buffers)
                    free.append(block.buffers)
            finally:
                stop.set()
