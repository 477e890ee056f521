"""Where rows of activations come from when no cache holds them: a language model, or the user's own files or arrays.

A source gives blocks of rows by number, as `training.activations.cache.CacheSource` does, so that batches need not know
which it is.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.corpus.tokens import Tokens
from training.model.language_model import Model

NO_NUMBERS = "a wider model.dtype and cache.dtype usually help; if not, the weights themselves are damaged."
"""What to do about NaN or infinite activations."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@runtime_checkable
class Source(Protocol):
    """Blocks of activation rows by number: block b holds rows `b · block_rows` to `(b + 1) · block_rows`."""

    widths: dict[str, int]
    itemsize: int
    """Bytes of one number of a row."""

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks, in the order given."""
        ...

    def norms(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, " n_rows"]:
        """Their fp32 norms."""
        ...


def row_norms(rows: Float[Tensor, "n_rows d"]) -> Float[Tensor, " n_rows"]:
    """The Euclidean norm of each row, in fp32 whatever the row's type."""
    return torch.cat([chunk.float().norm(dim=1) for chunk in rows.split(65_536)])


class ModelSource:
    """Runs the language model on whole sequences, all hooks in one pass, and rounds rows as a cache would."""

    def __init__(self, model: Model, tokens: Tokens, hooks: Sequence[str], *, dtype: str, batch_seqs: int) -> None:
        """`hooks` are those a forward pass takes; `dtype` is the rows' precision."""
        self.model, self.tokens, self.hooks = model, tokens, tuple(hooks)
        self.dtype, self.batch_seqs = DTYPES[dtype], batch_seqs
        self.widths = {hook: model.d_hook(hook) for hook in hooks}
        self.itemsize = self.dtype.itemsize
        self._last: tuple[bytes, dict[str, Tensor]] = (b"", {})

    def compute(self, seqs: Int64[np.ndarray, " n"]) -> dict[str, Tensor]:
        """Each hook's activations of these sequences, `[n, n_ctx, d]` on the CPU."""
        assert self.tokens.tokens is not None
        ids = torch.from_numpy(self.tokens.tokens[seqs]).long()
        # groups of one size: products in bf16 round differently for another, and a row must not depend on its company
        acts = self.model.activations(ids, self.hooks, n_seqs_per_forward=self.batch_seqs)
        return {hook: rows.to(self.dtype).cpu() for hook, rows in acts.items()}

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these sequences; the pass that gave one hook's is kept for the others'."""
        assert block_rows == self.tokens.n_ctx, "a language model gives whole sequences"
        if self._last[0] != blocks.tobytes():
            self._last = (blocks.tobytes(), self.compute(blocks))
        rows = self._last[1][hook].flatten(0, 1)
        if not rows.isfinite().all():
            bad = int((~rows.isfinite().all(1)).nonzero()[0, 0])
            raise SaescopeError(
                f"{hook}: NaN or infinite activations in sequence {int(blocks[bad // block_rows])}, position "
                f"{bad % block_rows}; {NO_NUMBERS}"
            )
        return rows

    def norms(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, " n_rows"]:
        """Their fp32 norms."""
        return row_norms(self.rows(hook, blocks, block_rows))


@runtime_checkable
class OwnRows(Protocol):
    """Rows of the user's own: a folder (`training.activations.folder`) or arrays (`training.activations.arrays`)."""

    name: str
    hooks: dict[str, int]
    """Width of the rows, by hook."""

    def rows(self, hook: str, start: int, stop: int) -> Float[Tensor, "n_rows d"]:
        """Rows `start` to `stop` of a hook."""
        ...

    def place(self, hook: str, row: int) -> str:
        """Where a row of a hook lies, for a message."""
        ...


class ActsSource:
    """The user's own rows, read where they lie."""

    def __init__(self, acts: OwnRows) -> None:
        self.acts = acts
        self.widths = dict(acts.hooks)
        self.itemsize = max(acts.rows(hook, 0, 1).element_size() for hook in self.widths)

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks."""
        if hook not in self.widths:
            raise SaescopeError(f"{self.acts.name} has no hook {hook!r}; it has {', '.join(self.widths)}.")
        parts = [self.acts.rows(hook, int(b) * block_rows, (int(b) + 1) * block_rows) for b in blocks]
        rows = torch.cat(parts) if parts else torch.zeros(0, self.widths[hook])
        if not rows.isfinite().all():
            bad = int((~rows.isfinite().all(1)).nonzero()[0, 0])
            row = int(blocks[bad // block_rows]) * block_rows + bad % block_rows
            raise SaescopeError(
                f"{hook}: NaN, infinite values or values beyond float32 (3.4e38) in {self.acts.place(hook, row)} (row "
                f"{row} of all); clean them and start again."
            )
        return rows

    def norms(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, " n_rows"]:
        """Their fp32 norms."""
        return row_norms(self.rows(hook, blocks, block_rows))
