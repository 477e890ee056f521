"""Sources of activations other than a cache: a language model, a user's module, or the user's own files or arrays.

All sources return blocks of rows by number, like `training.activations.cache.CacheSource`, so batches are independent of
the kind of source.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.corpus.tokens import Tokens
from training.model.language_model import Model
from training.model.module import HookedModule

NO_NUMBERS = "a wider model.dtype and cache.dtype usually help; if not, the model's weights are damaged."
"""Advice on NaN or infinite activations, for messages."""
_CHUNK_ROWS = 1024
"""Few enough that the fp32 copy of these rows stays in the CPU caches."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@runtime_checkable
class Source(Protocol):
    """Blocks of activation rows by number: block b is rows `b · block_rows` to `(b + 1) · block_rows`."""

    widths: dict[str, int]
    dtypes: dict[str, torch.dtype]
    device: torch.device
    """Device on which rows are stored or computed."""
    computed: bool
    """Whether rows are recomputed on each read, all hooks in one pass. Otherwise several threads may read concurrently."""
    group: int
    """Preferred number of blocks per read."""

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks, in the given order, on the CPU."""
        ...

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]]
    ) -> None:
        """Fill `out` with the rows of its hooks, without checking them, and without intermediate copies if possible."""
        ...

    def norms(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        rows: Float[Tensor, "n_rows d"] | None = None,
    ) -> Float[Tensor, " n_rows"]:
        """The fp32 norms of these rows, on the CPU; unless stored, computed on the device of `rows`, if they were read.

        Raises:
            SaescopeError: a row contains NaN or infinite values.
        """
        ...


def row_norms(rows: Float[Tensor, "n_rows d"]) -> Float[Tensor, " n_rows"]:
    """The Euclidean norm of each row, in fp32 for any dtype, on the rows' device."""
    if rows.device.type == "cuda":
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return torch.cat([chunk.float().norm(dim=1) for chunk in rows.split(_CHUNK_ROWS)])


def first_fault(rows: Float[Tensor, "n_rows d"], norms: Float[Tensor, " n_rows"]) -> int | None:
    """Index of the first row with NaN or infinite values; finite rows can have an infinite norm."""
    doubtful = (~norms.isfinite()).nonzero().squeeze(1)
    if not len(doubtful):
        return None
    faulty = doubtful[~rows[doubtful.to(rows.device)].isfinite().all(1).to(doubtful.device)]
    return int(faulty[0]) if len(faulty) else None


class ModelSource:
    """Runs a model on whole sequences, all hooks in one pass, and rounds rows as a cache does.

    A language model is fed their tokens, a user's module their numbers.
    """

    computed = True

    def __init__(
        self, model: Model | HookedModule, tokens: Tokens, hooks: Sequence[str], *, dtype: str, batch_seqs: int
    ) -> None:
        """`hooks` are recorded in each forward pass; `dtype` is the rows' precision."""
        self.model, self.tokens, self.hooks = model, tokens, tuple(hooks)
        self.dtype, self.group, self.device = DTYPES[dtype], batch_seqs, model.device
        self.widths = {hook: model.d_hook(hook) for hook in hooks}
        self.dtypes = dict.fromkeys(hooks, self.dtype)
        self._last: tuple[bytes, dict[str, Tensor]] = (b"", {})

    def compute(self, seqs: Int64[np.ndarray, " n"]) -> dict[str, Float[Tensor, "n n_ctx _"]]:
        """Compute the activations of these sequences at each hook, on the model's device."""
        ids = torch.from_numpy(seqs if self.tokens.tokens is None else self.tokens.tokens[seqs]).long()
        if self.device.type == "cuda":
            ids = ids.pin_memory().to(self.device, non_blocking=True)
        # a fixed batch size: bf16 matmuls round differently for other sizes, and a row must not depend on its batch
        acts = self.model.activations(ids, self.hooks, n_seqs_per_forward=self.group)
        return {hook: rows.to(self.dtype) for hook, rows in acts.items()}

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]]
    ) -> None:
        """Fill `out` with the rows of these sequences."""
        assert block_rows == self.tokens.n_ctx, "a model gives whole sequences"
        acts = self.compute(blocks)
        for hook, rows in out.items():
            rows.copy_(acts[hook].flatten(0, 1))

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these sequences; the last pass is kept, so that other hooks can reuse it."""
        assert block_rows == self.tokens.n_ctx, "a model gives whole sequences"
        if self._last[0] != blocks.tobytes():
            self._last = (blocks.tobytes(), {h: acts.cpu() for h, acts in self.compute(blocks).items()})
        rows = self._last[1][hook].flatten(0, 1)
        self.norms(hook, blocks, block_rows, rows)
        return rows

    def norms(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        rows: Float[Tensor, "n_rows d"] | None = None,
    ) -> Float[Tensor, " n_rows"]:
        """The fp32 norms of these rows."""
        if rows is None:
            rows = self.rows(hook, blocks, block_rows)
        norms = row_norms(rows).cpu()
        if (bad := first_fault(rows, norms)) is not None:
            raise SaescopeError(
                f"{hook}: NaN or infinite activations in sequence {int(blocks[bad // block_rows])}, position "
                f"{bad % block_rows}; {NO_NUMBERS}"
            )
        return norms


@runtime_checkable
class OwnRows(Protocol):
    """The user's own rows: a folder (`training.activations.folder`) or arrays (`training.activations.arrays`)."""

    name: str
    hooks: dict[str, int]
    """Width of the rows, by hook."""

    dtypes: dict[str, torch.dtype]
    n_rows: int
    device: torch.device
    """Device of the rows."""

    def read(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out` with the rows of these blocks of a hook."""
        ...

    def place(self, hook: str, row: int) -> str:
        """The location of a hook's row, for a message."""
        ...


class ActsSource:
    """The user's own rows, read in place. Norms are computed once and kept in memory."""

    computed, group = False, 1

    def __init__(self, acts: OwnRows) -> None:
        self.acts, self.device = acts, acts.device
        self.widths, self.dtypes = dict(acts.hooks), dict(acts.dtypes)
        self._norms: dict[str, Float[np.ndarray, " n_rows"]] = {}

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]]
    ) -> None:
        """Fill `out` with the rows of these blocks."""
        for hook, rows in out.items():
            self.acts.read(hook, blocks, block_rows, rows)

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks."""
        if hook not in self.widths:
            raise SaescopeError(f"{self.acts.name} has no hook {hook!r}, only {', '.join(self.widths)}.")
        rows = torch.empty(len(blocks) * block_rows, self.widths[hook], dtype=self.dtypes[hook])
        self.acts.read(hook, blocks, block_rows, rows)
        self.norms(hook, blocks, block_rows, rows)
        return rows

    def norms(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        rows: Float[Tensor, "n_rows d"] | None = None,
    ) -> Float[Tensor, " n_rows"]:
        """The fp32 norms of these rows."""
        if hook not in self._norms:
            self._norms[hook] = np.full(self.acts.n_rows, np.nan, dtype=np.float32)
        known = self._norms[hook][: self.acts.n_rows // block_rows * block_rows].reshape(-1, block_rows)
        if np.isnan(known[blocks]).any():
            if rows is None:
                rows = self.rows(hook, blocks, block_rows)
            norms = row_norms(rows).cpu()
            if (bad := first_fault(rows, norms)) is not None:
                row = int(blocks[bad // block_rows]) * block_rows + bad % block_rows
                raise SaescopeError(
                    f"{hook}: NaN, infinite values or values beyond float32 (3.4e38) in {self.acts.place(hook, row)} (row "
                    f"{row} of all); clean them and start again."
                )
            known[blocks] = norms.numpy().reshape(-1, block_rows)
        return torch.from_numpy(known[blocks].reshape(-1))
