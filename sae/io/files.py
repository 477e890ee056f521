"""Atomic writes (to a temporary name, then rename), and reads with clear error messages.

A killed process leaves files that end in `.partial`. They are never read, and the next write to that name removes them:
a writer holds a lock on its partial file or folder, so only abandoned ones can be locked and removed.
"""

import contextlib
import errno
import functools
import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from filelock import lock_descriptor
from torch import Tensor

from sae.errors import SaescopeError

_PARTIAL = ".partial"
_FULL = {
    errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "the file grew too large",
}
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}


@functools.cache
def code_version() -> str:
    """The installed version of this code, as manifests record it."""
    try:
        return importlib.metadata.version("saescope")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def refusing_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing `path` into a SaescopeError.

    Raises:
        SaescopeError: the disk or quota is full, or a file exceeds the system's size limit.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(_existing(path)).free
        if inside := [p for p in path.parents if p.suffix == _PARTIAL and p.name.startswith(".")]:
            # report the final name, not the temporary one
            path = inside[-1].with_name(inside[-1].name[1:].rsplit(".", 2)[0])
        raise SaescopeError(
            f"{path}: {_FULL[error.errno]} ({free:,} bytes free) and nothing was written under this name; free "
            "some space or choose another folder."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without error."""
    with _partial(path, folder=False) as partial, refusing_full_disk(path):
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """Make a folder that replaces `final` when the block ends without error."""
    with _partial(final, folder=True) as partial, refusing_full_disk(final):
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        _sync_folder(partial)
        if final.exists():
            # there is no portable swap of two folders; a kill between the renames leaves neither, never a mixture
            old = final.with_name(_partial_name(final))
            final.rename(old)
            partial.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(final)
        _sync_folder(final.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically with sorted keys, so that equal objects give equal bytes. NaN is an error."""
    write_bytes(path, json_bytes(obj))


def json_bytes(obj: Any) -> bytes:
    """Canonical JSON: sorted keys, UTF-8, final newline."""
    return (json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Equal tensors and metadata give equal bytes, which the library's own writer does not guarantee (its metadata order
    varies between runs). Tensors are written one by one, without a second copy of all of them in memory.
    """
    head, order = tensors_head(tensors, metadata)
    with atomic_file(path) as file:
        file.write(head)
        for name in order:
            file.write(tensor_bytes(tensors[name]))


def tensors_head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The header of a safetensors file, and the order in which the tensors follow."""
    # widest dtypes first, which keeps every tensor aligned as the format requires
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        size = tensors[name].nbytes
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements in row-major order as raw bytes (a view if the tensor is contiguous on the CPU)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SaescopeError: the file is missing, unreadable, not JSON, or not a JSON object.
    """
    try:
        return parsed(path.read_bytes(), path)
    except OSError as error:
        raise SaescopeError(f"{path}: cannot be read as JSON ({error}); restore the file or write it again.") from error


def parsed(data: bytes, path: Path | str) -> dict[str, Any]:
    """Parse the bytes of a file as a JSON object.

    Raises:
        SaescopeError: they are not JSON, or not an object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))  # other programs write a BOM
    except (ValueError, RecursionError) as error:
        raise SaescopeError(f"{path}: cannot be read as JSON ({error}); restore the file or write it again.") from error
    if not isinstance(value, dict):
        raise SaescopeError(f"{path}: expected a JSON object, found a {type(value).__name__}.")
    return value


def format_of(manifest: Path) -> str | None:
    """The format that a manifest names; None if there is no readable manifest."""
    try:
        named = read_json(manifest).get("format")
    except SaescopeError:
        return None
    return named if isinstance(named, str) else None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file into CPU memory.

    Raises:
        SaescopeError: the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SaescopeError(f"{path}: cannot be read as safetensors ({error}); restore or re-create it.") from error


def read_rows(path: Path, name: str, rows: Sequence[int]) -> Tensor:
    """Read some rows of one tensor of a safetensors file, in the given order, and nothing else.

    Raises:
        SaescopeError: the file is missing, truncated or not safetensors, or has no such tensor or row.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensor = file.get_slice(name)
            return torch.cat([tensor[row : row + 1] for row in rows])
    except (OSError, SafetensorError, IndexError) as error:
        raise SaescopeError(f"{path}: rows of {name} cannot be read ({error}); restore or re-create it.") from error


def remove_abandoned(path: Path) -> None:
    """Remove partial files that killed processes left while writing `path`."""
    remove_all_abandoned(path.parent, _escaped(path.name))


def remove_all_abandoned(folder: Path, names: str) -> None:
    """Remove partial files that killed processes left in a folder, for final names that match the glob `names`."""
    for partial in folder.glob(f".{names}.*{_PARTIAL}"):
        with _lock(partial, without_locks=False) as locked:
            if locked:
                _remove(partial)


@contextlib.contextmanager
def _partial(path: Path, *, folder: bool) -> Iterator[Path]:
    """A fresh, locked partial file or folder beside `path`; gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    while True:
        partial = path.with_name(_partial_name(path))
        with refusing_full_disk(path):
            partial.mkdir() if folder else partial.touch(exist_ok=False)
        with _lock(partial, without_locks=True) as locked:
            # another process may have removed it before it was locked; then try again
            if locked and partial.exists():
                try:
                    yield partial
                finally:
                    _remove(partial)
                return


@contextlib.contextmanager
def _lock(path: Path, *, without_locks: bool) -> Iterator[bool]:
    """Try to lock a file or folder and yield success (`without_locks` if the file system has no locks)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            locked = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            locked = without_locks and error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
        yield locked
    finally:
        os.close(descriptor)


def _partial_name(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(6)}{_PARTIAL}"


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """fsync a folder, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
