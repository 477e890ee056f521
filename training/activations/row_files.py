"""Rows of one width in files, one file behind the other: blocks of them are read straight into memory that is given."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError


class RowFile(NamedTuple):
    """Rows that lie one behind the other in a file, in this machine's own byte order."""

    path: Path
    offset: int
    """Bytes before the first."""
    n_rows: int


class Run(NamedTuple):
    """Rows that follow each other, and where they go."""

    first: int
    n_rows: int
    at: int


def runs(blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Iterator[Run]:
    """The rows of blocks in the order given, neighbouring blocks together."""
    begins = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
    lengths = np.diff(begins, append=len(blocks))
    for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
        yield Run(int(blocks[begin]) * block_rows, length * block_rows, begin * block_rows)


class RowFiles:
    """Reads blocks of rows; several threads may at once."""

    def __init__(self, files: Sequence[RowFile], row_bytes: int) -> None:
        self.files, self.row_bytes = files, row_bytes
        self._ends = list(accumulate(file.n_rows for file in files))

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out`, on the CPU, with the rows of these blocks: one request for blocks that lie side by side.

        Raises:
            SaescopeError: a file has gone or become shorter since it was opened.
        """
        target = memoryview(out.view(torch.uint8).numpy().reshape(-1))
        for number, requests in groupby(self._requests(blocks, block_rows), lambda request: request[0]):
            file = self.files[number]
            try:
                with file.path.open("rb", buffering=0) as opened:
                    for _, (first, n_rows, at) in requests:
                        part = target[at * self.row_bytes : (at + n_rows) * self.row_bytes]
                        _read_exactly(opened.fileno(), part, file.offset + first * self.row_bytes, file.path)
            except FileNotFoundError:
                raise SaescopeError(f"{file.path} has gone since it was opened; restore it and start again.") from None

    def _requests(self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Iterator[tuple[int, Run]]:
        """Runs cut at the ends of files, each with its file's number and counted from that file's first row."""
        for first, n_rows, at in runs(blocks, block_rows):
            while n_rows:
                number = bisect_right(self._ends, first)
                here = min(n_rows, self._ends[number] - first)
                yield number, Run(first - self._ends[number] + self.files[number].n_rows, here, at)
                first, n_rows, at = first + here, n_rows - here, at + here


def _read_exactly(descriptor: int, part: memoryview, offset: int, path: Path) -> None:
    """Fill `part` with the bytes from `offset` on; one request carries at most 2 GB on Linux."""
    while part:
        n_read = os.preadv(descriptor, (part,), offset)
        if not n_read:
            raise SaescopeError(f"{path} ends before byte {offset:,}: it was cut while it was read; write it again.")
        part, offset = part[n_read:], offset + n_read
