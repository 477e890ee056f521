"""The user's own activations, passed in from Python: NumPy arrays or torch tensors, one per hook of the site.

Accepted forms, for whole arrays or for one batch of a loader:

    array                    [n_rows, d] or [n_seqs, n_ctx, d]: the one hook of an SAE
    (array, array)           a transcoder's input and target
    {hook: array, ...}       by hook, with the hook names of the site
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from sae.io.files import tensor_bytes

CHUNK_ROWS = 65_536
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_array(value: object) -> bool:
    """Whether this is an array of rows, rather than an iterable of batches."""
    return isinstance(value, np.ndarray | Tensor)


def by_hook(given: object, hooks: Sequence[str], what: str) -> dict[str, np.ndarray | Tensor]:
    """Return the given arrays by hook, checked but not converted.

    Args:
        given: see the module docstring.
        hooks: the hooks of the site, its input first, then further hooks of the mask.
        what: what to call the arrays in messages: "the array", "batch 3".

    Raises:
        SaescopeError: another form, other hooks, or arrays that are not floating-point rows of the same number.
    """
    if isinstance(given, Mapping):
        if missing := [hook for hook in hooks if hook not in given]:
            there = ", ".join(map(str, given)) or "none"
            raise SaescopeError(f"{what} has no hook {missing[0]!r} (it has {there}); set site.")
        arrays = {hook: given[hook] for hook in hooks}
    else:
        parts = list(given) if isinstance(given, list | tuple) else [given]
        if len(parts) != len(hooks):
            raise SaescopeError(
                f"{what} has {_counted(len(parts), 'array')}, but the site has {_counted(len(hooks), 'hook')} "
                f"({', '.join(hooks)}); pass one array per hook, or a dict by hook."
            )
        arrays = dict(zip(hooks, parts, strict=True))
    for hook, array in arrays.items():
        _check(array, what if len(hooks) == 1 else f"{what}, hook {hook!r}")
    counts = {hook: n_rows_of(array) for hook, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{hook} {n:,}" for hook, n in counts.items())
        raise SaescopeError(
            f"{what}: hooks have different numbers of rows ({listed}); row r must be the same token in all."
        )
    return arrays


def _check(array: object, what: str) -> None:
    if not isinstance(array, np.ndarray | Tensor):
        raise SaescopeError(f"{what} is of type {type(array).__name__}; rows must be a NumPy array or a torch tensor.")
    numeric = array.dtype in _DTYPES if isinstance(array, Tensor) else array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if not numeric:
        raise SaescopeError(
            f"{what} is {str(array.dtype).removeprefix('torch.')}; rows must be float16, bfloat16, float32 or float64."
        )
    if array.ndim not in (2, 3) or array.shape[-1] == 0:
        raise SaescopeError(
            f"{what} has shape {list(array.shape)}; activations must be [n_rows, d] or [n_seqs, n_ctx, d]."
        )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def n_rows_of(array: np.ndarray | Tensor) -> int:
    """Number of rows in `[n_rows, d]` or `[n_seqs, n_ctx, d]`."""
    return int(np.prod(array.shape[:-1]))


def as_rows(array: np.ndarray | Tensor) -> Float[Tensor, "n_rows d"]:
    """Rows as a tensor on their device, in their own precision (fp64 becomes fp32)."""
    if isinstance(array, np.ndarray):
        # torch supports neither foreign byte order nor read-only arrays, such as memory-mapped ones
        native = array.dtype.newbyteorder("=")
        array = torch.from_numpy(np.array(array, dtype=native, order="C") if not _shareable(array) else array)
    rows = array.detach().reshape(-1, array.shape[-1])
    return rows.float() if rows.dtype == torch.float64 else rows


def _shareable(array: np.ndarray) -> bool:
    return array.dtype.isnative and array.flags.writeable and all(step >= 0 for step in array.strides)


def _dtype(array: np.ndarray | Tensor) -> torch.dtype:
    """The dtype of its rows when read."""
    if isinstance(array, Tensor):
        return torch.float32 if array.dtype == torch.float64 else array.dtype
    return torch.float16 if array.dtype.itemsize == 2 else torch.float32


class Arrays:
    """Whole arrays, read a few rows at a time; memory-mapped ones stay on disk. Implements `sources.OwnRows`."""

    def __init__(self, given: object, hooks: Sequence[str], *, name: str = "the array") -> None:
        """`hooks` are the hooks of the site and its mask.

        Raises:
            SaescopeError: as in `by_hook`.
        """
        self.name = name
        arrays = by_hook(given, hooks, name)
        # views: three-dimensional arrays are taken as consecutive rows
        self._rows = {hook: array.reshape(-1, array.shape[-1]) for hook, array in arrays.items()}
        self.hooks = {hook: int(array.shape[-1]) for hook, array in arrays.items()}
        self.n_rows = n_rows_of(next(iter(arrays.values())))
        self.dtypes = {hook: _dtype(array) for hook, array in arrays.items()}
        self.device = next((a.device for a in arrays.values() if isinstance(a, Tensor)), torch.device("cpu"))
        self.n_ctx = next((int(a.shape[1]) for a in arrays.values() if a.ndim == 3), None)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The sha256 of each hook's rows; reads everything once."""
        return {"hooks": {hook: self._digest(hook) for hook in self.hooks}, "n_rows": self.n_rows}

    def _digest(self, hook: str) -> dict[str, Any]:
        digest = hashlib.sha256()
        for start in range(0, self.n_rows, CHUNK_ROWS):
            rows = self.rows(hook, start, min(start + CHUNK_ROWS, self.n_rows))
            digest.update(tensor_bytes(rows))
        return {"dtype": str(rows.dtype).removeprefix("torch.") if self.n_rows else None, "sha256": digest.hexdigest()}

    def rows(self, hook: str, start: int, stop: int) -> Float[Tensor, "n_rows d"]:
        """Rows `start` to `stop` of a hook on the CPU, in their own precision (fp64 as fp32)."""
        return as_rows(self._rows[hook][start:stop]).cpu()

    def read(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out` with the rows of these blocks of a hook."""
        array, d = self._rows[hook], self.hooks[hook]
        whole = array[: len(array) // block_rows * block_rows]
        if isinstance(whole, Tensor):
            of, target = whole.detach().reshape(-1, block_rows, d), out.view(-1, block_rows, d)
            chosen = torch.from_numpy(blocks).to(of.device)
            if of.dtype == out.dtype and of.device == out.device:
                torch.index_select(of, 0, chosen, out=target)
            else:
                target.copy_(of.index_select(0, chosen))
        elif whole.dtype.isnative and _dtype(whole) == out.dtype and out.device.type == "cpu" and whole.dtype.itemsize < 8:
            # the default mode would make numpy copy a second time
            into = out.numpy().reshape(-1, block_rows, d)
            np.take(whole.reshape(-1, block_rows, d), blocks, axis=0, out=into, mode="clip")
        else:
            out.copy_(as_rows(whole.reshape(-1, block_rows, d)[blocks]))

    def place(self, hook: str, row: int) -> str:  # noqa: ARG002  (all hooks have the same rows)
        """The position of a row, for a message."""
        where = "" if self.n_ctx is None else f", sequence {row // self.n_ctx}, position {row % self.n_ctx}"
        return self.name + where
