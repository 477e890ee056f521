"""Read rows from files in an object store: many blocks concurrently, with neighbours in one request."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.activations.row_files import runs
from training.storage.remote import Range, RemoteStore

GAP_BYTES = 1 << 18
"""Gaps up to this size are read and discarded, which takes no longer than another request."""


class RemoteFile(NamedTuple):
    """Contiguous rows in a file, in native byte order."""

    name: str
    offset: int
    """Byte offset of the first row."""
    n_rows: int


class _Piece(NamedTuple):
    """Contiguous requested rows in one file."""

    file: int
    start: int
    """Byte offset in the file."""
    n_bytes: int
    at: int
    """Byte offset in the output."""


class RemoteRows:
    """Reads blocks of rows, like `training.activations.row_files.RowFiles`; thread-safe."""

    def __init__(self, store: RemoteStore, files: Sequence[RemoteFile], row_bytes: int) -> None:
        self.store, self.files, self.row_bytes = store, files, row_bytes
        self._ends = np.cumsum([file.n_rows for file in files])

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out`, on the CPU, with the rows of these blocks.

        Raises:
            SaescopeError: the store cannot be reached, or a file is gone or shorter than before.
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
    """Group sorted pieces that are close to each other in the same file."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if last is not None and last.file == piece.file and piece.start - (last.start + last.n_bytes) <= GAP_BYTES:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
