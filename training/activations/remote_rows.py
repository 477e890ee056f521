"""Rows in files of an object store: blocks of them are asked for many at a time, neighbours in one request."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.activations.row_files import runs
from training.storage.remote import Range, RemoteStore

GAP_BYTES = 1 << 18
"""Read and thrown away rather than asked around: a request costs as long."""


class RemoteFile(NamedTuple):
    """Rows that lie one behind the other in a file, in this machine's own byte order."""

    name: str
    offset: int
    """Bytes before the first."""
    n_rows: int


class _Piece(NamedTuple):
    """Rows that are wanted, one behind the other in one file."""

    file: int
    start: int
    """Its first byte there."""
    n_bytes: int
    at: int
    """Its first byte among those wanted."""


class RemoteRows:
    """Reads blocks of rows, as `training.activations.row_files.RowFiles` does; several threads may at once."""

    def __init__(self, store: RemoteStore, files: Sequence[RemoteFile], row_bytes: int) -> None:
        self.store, self.files, self.row_bytes = store, files, row_bytes
        self._ends = np.cumsum([file.n_rows for file in files])

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out`, on the CPU, with the rows of these blocks.

        Raises:
            SaescopeError: the store cannot be reached, or a file has gone or become shorter.
        """
        target = out.view(torch.uint8).numpy().reshape(-1)
        groups = _together(sorted(self._pieces(blocks, block_rows)))
        names = [self.files[group[0].file].name for group in groups]
        stops = [max(piece.start + piece.n_bytes for piece in group) for group in groups]
        ranges = [Range(name, group[0].start, stop) for name, group, stop in zip(names, groups, stops, strict=True)]
        for group, data in zip(groups, self.store.read_ranges(ranges), strict=True):
            found = np.frombuffer(data, dtype=np.uint8)
            for piece in group:
                first = piece.start - group[0].start
                target[piece.at : piece.at + piece.n_bytes] = found[first : first + piece.n_bytes]

    def _pieces(self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> list[_Piece]:
        found = []
        for first, n_rows, at in runs(blocks, block_rows):
            row, stop, place = first, first + n_rows, at
            while row < stop:
                number = int(np.searchsorted(self._ends, row, side="right"))
                file = self.files[number]
                local = row - (int(self._ends[number]) - file.n_rows)
                here = min(stop - row, file.n_rows - local)
                start = file.offset + local * self.row_bytes
                found.append(_Piece(number, start, here * self.row_bytes, place * self.row_bytes))
                row, place = row + here, place + here
        return found


def _together(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Pieces of one file that lie near each other, in the order of their places."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if last is not None and last.file == piece.file and piece.start - (last.start + last.n_bytes) <= GAP_BYTES:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
