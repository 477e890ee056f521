"""The user's own activations, `acts:DIR`: rows in `.npy` and `.safetensors` files, read in place.

Files directly in the folder form the hook `acts`, in natural order of their names (2 before 10); each subfolder is a hook
with its name. Hidden files and folders are ignored. All hooks must have the same number of rows, also file by file if they
have the same number of files. An array is `[n_rows, d]`, or `[n_seqs, n_ctx, d]`, taken as consecutive rows.
"""

import bisect
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.errors import SaescopeError, first_line
from sae.io.arrays import map_array
from sae.io.paths import user_path
from training.activations.row_files import RowFile, RowFiles, runs
from training.corpus.files import leading_somewhere

_SUFFIXES = (".npy", ".safetensors")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# each open file takes a descriptor, and 1,024 is a common limit
_OPEN_FILES = 256
_HASHERS = 4


class _Array(NamedTuple):
    """The location, shape and dtype of one array."""

    path: Path
    key: str | None
    """The tensor's name in a safetensors file."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int | None
    """Byte offset of the first row; None if rows are not contiguous or not in native byte order."""

    @property
    def where(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}, tensor {self.key!r}"

    @property
    def n_rows(self) -> int:
        return int(np.prod(self.shape[:-1]))


class ActsDir:
    """A folder of activations. Implements `sources.OwnRows`."""

    device = torch.device("cpu")

    def __init__(self, path: str | Path, hook: str | None = None) -> None:
        """Read the headers of all files; values are read later.

        Args:
            path: the folder.
            hook: hook name for the files directly in the folder, by default `acts`.

        Raises:
            SaescopeError: no folder, no arrays, or arrays that are not rows of the same width.
        """
        self.path = user_path(path)
        self.name = str(self.path)
        if not self.path.is_dir():
            raise SaescopeError(f"acts:{path}: no such folder (working directory: {Path.cwd()}).")
        below = [p for p in sorted(self.path.iterdir()) if _shown(p) and leading_somewhere(p).is_dir()]
        folders = {hook or "acts": self.path, **{p.name: p for p in below}}
        found = {name: [a for file in _array_files(folder) for a in _arrays(file)] for name, folder in folders.items()}
        self._arrays = {name: arrays for name, arrays in found.items() if arrays}
        if not self._arrays:
            raise SaescopeError(f"{self.path} contains no .npy or .safetensors files; put activations there.")
        self.hooks = {name: _width(arrays) for name, arrays in self._arrays.items()}
        self.n_rows = self._equal_rows()
        if not self.n_rows:
            n_arrays = sum(map(len, self._arrays.values()))
            raise SaescopeError(f"{self.path}: all of its {n_arrays} arrays are empty; put activations there.")
        self._ends = {name: list(accumulate(a.n_rows for a in arrays)) for name, arrays in self._arrays.items()}
        self.dtypes = {name: _common_dtype(arrays) for name, arrays in self._arrays.items()}
        self._plain = {name: self._row_files(name) for name in self._arrays}
        self._open = lru_cache(maxsize=_OPEN_FILES)(partial(_open_array))

    def _equal_rows(self) -> int:
        counts = {name: sum(a.n_rows for a in arrays) for name, arrays in self._arrays.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {n:,}" for name, n in counts.items())
            raise SaescopeError(f"{self.path}: hooks have different numbers of rows ({listed}); row r must be the same "
                                f"token in all.")
        self._check_pairs()
        return next(iter(counts.values()))

    def _check_pairs(self) -> None:
        """Check that the i-th files of all hooks have the same number of rows, if the hooks have equally many files."""
        first, *others = self._files().values()
        for other in others:
            for (mine, n_mine), (theirs, n_theirs) in zip(first.items(), other.items(), strict=False):
                if len(first) == len(other) and n_mine != n_theirs:
                    raise SaescopeError(
                        f"{mine} has {n_mine:,} rows, but the matching file of another hook, {theirs}, has {n_theirs:,}; "
                        f"row r must be the same token in all hooks: use the same file names in all of them."
                    )

    def _files(self) -> dict[str, dict[Path, int]]:
        """The files of each hook in order, with their numbers of rows."""
        out: dict[str, dict[Path, int]] = {}
        for name, arrays in self._arrays.items():
            of = out.setdefault(name, {})
            for array in arrays:
                of[array.path] = of.get(array.path, 0) + array.n_rows
        return out

    @cached_property
    def identity(self) -> dict[str, Any]:
        """For each hook, the number of files and one sha256 over their contents; reads everything once."""
        return {"hooks": {name: _digest(arrays) for name, arrays in self._arrays.items()}, "n_rows": self.n_rows}

    def place(self, hook: str, row: int) -> str:
        """The file of a hook's row and the row's index in it, for a message."""
        i = bisect.bisect_right(self._ends[hook], row)
        array = self._arrays[hook][i]
        return f"{array.where}, row {row - (self._ends[hook][i] - array.n_rows)}"

    def _row_files(self, hook: str) -> RowFiles | None:
        """The hook's files for direct reading, or None if their rows need conversion."""
        files = []
        for array in self._arrays[hook]:
            if array.offset is None or array.dtype != self.dtypes[hook]:
                return None
            files.append(RowFile(array.path, array.offset, array.n_rows))
        return RowFiles(files, self.hooks[hook] * self.dtypes[hook].itemsize)

    def read(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Float[Tensor, "n_rows d"]
    ) -> None:
        """Fill `out` with the rows of these blocks of a hook, reading neighbouring blocks together."""
        plain = self._plain[hook]
        if plain is not None and out.device.type == "cpu":
            plain.read(blocks, block_rows, out)
            return
        for first, n_rows, at in runs(blocks, block_rows):
            out[at : at + n_rows] = self.rows(hook, first, first + n_rows)

    def rows(self, hook: str, start: int, stop: int) -> Float[Tensor, "n_rows d"]:
        """Rows `start` to `stop` of a hook, in the files' precision (fp64 as fp32; fp32 if files differ)."""
        if hook not in self.hooks:
            raise SaescopeError(f"{self.path} has no hook {hook!r}, only {', '.join(self.hooks)}.")
        assert 0 <= start <= stop <= self.n_rows, f"rows {start} to {stop} of {self.n_rows}"
        out = torch.empty(stop - start, self.hooks[hook], dtype=self.dtypes[hook])
        at = start
        for i in range(bisect.bisect_right(self._ends[hook], start), len(self._ends[hook])):
            if at >= stop:
                break
            array, end = self._arrays[hook][i], self._ends[hook][i]
            first = end - array.n_rows
            upto = min(stop, end)
            out[at - start : upto - start] = _rows_of(array, self._open(array), at - first, upto - first)
            at = upto
        return out


def _array_files(folder: Path) -> list[Path]:
    found = [leading_somewhere(p) for p in folder.iterdir() if p.suffix in _SUFFIXES and _shown(p)]
    return sorted((p for p in found if p.is_file()), key=lambda p: _natural(p.name))


def _shown(path: Path) -> bool:
    """Whether a file isn't hidden, like those of notebooks (.ipynb_checkpoints) and macOS (._a.npy)."""
    return not path.name.startswith(".")


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Natural sort key: acts_2 before acts_10."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)], name


def _arrays(path: Path) -> Iterator[_Array]:
    """The arrays of a file, in natural order of their names."""
    if path.suffix == ".npy":
        array = _open_npy(path)
        if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
            raise SaescopeError(f"{path} is {array.dtype}; rows must be float16, float32 or float64.")
        offset = array.offset if array.flags.c_contiguous and array.dtype.isnative else None  # type: ignore[attr-defined]
        yield _checked(_Array(path, None, array.shape, _torch_dtype(array.dtype), offset))
        return
    file, begins = _open_safetensors(path), _begins(path)
    for key in sorted(file.keys(), key=_natural):
        view = file.get_slice(key)
        if view.get_dtype() not in _DTYPES:
            raise SaescopeError(f"{path}, tensor {key!r} is {view.get_dtype()}; rows must be {', '.join(_DTYPES)}.")
        yield _checked(_Array(path, key, tuple(view.get_shape()), _DTYPES[view.get_dtype()], begins[key]))


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return {2: torch.float16, 4: torch.float32, 8: torch.float64}[dtype.itemsize]


def _checked(array: _Array) -> _Array:
    if len(array.shape) not in (2, 3) or array.shape[-1] == 0:
        raise SaescopeError(
            f"{array.where} has shape {list(array.shape)}; activations must be [n_rows, d] or [n_seqs, n_ctx, d]."
        )
    return array


def _width(arrays: Sequence[_Array]) -> int:
    first = arrays[0]
    for other in arrays:
        if other.shape[-1] != first.shape[-1]:
            raise SaescopeError(
                f"{first.where} has rows of width {first.shape[-1]}, {other.where} of {other.shape[-1]}; a hook's rows "
                f"must have the same width: put each hook's files into its own subfolder."
            )
    return first.shape[-1]


def _common_dtype(arrays: Sequence[_Array]) -> torch.dtype:
    dtypes = {array.dtype for array in arrays}
    return dtypes.pop() if len(dtypes) == 1 and torch.float64 not in dtypes else torch.float32


def _open_array(array: _Array) -> Any:
    """Open an array lazily: slicing it reads the rows."""
    return _open_npy(array.path) if array.key is None else _open_safetensors(array.path).get_slice(array.key)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return map_array(path)
    except (ValueError, OSError) as error:
        raise SaescopeError(
            f"{path} is not a readable array ({first_line(error)}); pickled objects are never opened, and a truncated file "
            f"must be written again."
        ) from None


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SaescopeError(f"{path} is not a readable safetensors file ({first_line(error)}).") from None


def _begins(path: Path) -> dict[str, int | None]:
    """Byte offset of each tensor in a safetensors file; the format is little-endian and row-major."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    native = sys.byteorder == "little"
    return {key: 8 + length + int(of["data_offsets"][0]) if native else None
            for key, of in header.items() if key != "__metadata__"}


def _rows_of(array: _Array, opened: Any, start: int, stop: int) -> Tensor:
    """Rows of one array; of `[n_seqs, n_ctx, d]` only the sequences needed are read."""
    n_ctx = array.shape[1] if len(array.shape) == 3 else 1
    first, last = start // n_ctx, -(-stop // n_ctx)
    part = opened[first:last]
    if isinstance(part, np.ndarray):
        # torch doesn't support foreign byte order
        part = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="), order="C"))
    rows = part.reshape(-1, array.shape[-1])
    return rows[start - first * n_ctx : stop - first * n_ctx]


def _digest(arrays: Sequence[_Array]) -> dict[str, Any]:
    paths = list(dict.fromkeys(array.path for array in arrays))
    whole = hashlib.sha256()
    with ThreadPoolExecutor(_HASHERS) as pool:
        for digest in pool.map(_sha256, paths):
            whole.update(digest)
    return {"n_files": len(paths), "sha256": whole.hexdigest()}


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
