"""Writing beside the final name and renaming into place; reading back with errors that say what is wrong.

What a killed process leaves behind ends in `.partial`, is never read, and is removed by the next write to that name:
a writer holds a lock on its partial file or folder, so that only abandoned ones can be locked and removed.
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
    """Turn "no space left" while writing `path` into one sentence.

    Raises:
        SaescopeError: the disk or the quota is full, or a file grew beyond what the system allows.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(_existing(path)).free
        if inside := [p for p in path.parents if p.suffix == _PARTIAL and p.name.startswith(".")]:
            # people know the folder by the name it would have got
            path = inside[-1].with_name(inside[-1].name[1:].rsplit(".", 2)[0])
        raise SaescopeError(
            f"{path}: {_FULL[error.errno]} ({free:,} bytes free) and nothing was written under this name; free "
            "some space or choose another folder."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path`, replacing what is there, once the block has ended without error."""
    with _partial(path, folder=False) as partial, refusing_full_disk(path):
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """A folder to fill that becomes `final`, replacing what is there, once the block has ended without error."""
    with _partial(final, folder=True) as partial, refusing_full_disk(final):
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        _sync_folder(partial)
        if final.exists():
            # no portable call swaps two folders; a kill between the two renames leaves neither, never a mixture
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
    """Write JSON atomically, keys sorted, so that equal objects make equal bytes. NaN is refused."""
    write_bytes(path, json_bytes(obj))


def json_bytes(obj: Any) -> bytes:
    """The one spelling of an object in JSON: keys sorted, UTF-8, final newline."""
    return (json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Equal tensors and metadata make equal bytes, which the library's own writer does not promise (the order of its
    metadata varies from run to run); and tensors go to disk one by one, without a second copy of all in memory.
    """
    head, order = tensors_head(tensors, metadata)
    with atomic_file(path) as file:
        file.write(head)
        for name in order:
            file.write(tensor_bytes(tensors[name]))


def tensors_head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The first bytes of a safetensors file, and the order in which the tensors' own follow."""
    # wider types first keeps every tensor aligned, as the format asks
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
    """The elements in row-major order, as raw bytes (a view where the tensor lies so already)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SaescopeError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        return parsed(path.read_bytes(), path)
    except OSError as error:
        raise SaescopeError(f"{path}: cannot be read as JSON ({error}); restore the file or write it anew.") from error


def parsed(data: bytes, path: Path | str) -> dict[str, Any]:
    """The JSON object that the bytes of a file are.

    Raises:
        SaescopeError: they are not JSON, or no object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))  # other programs write a BOM
    except (ValueError, RecursionError) as error:
        raise SaescopeError(f"{path}: cannot be read as JSON ({error}); restore the file or write it anew.") from error
    if not isinstance(value, dict):
        raise SaescopeError(f"{path}: holds a JSON {type(value).__name__} where an object was expected.")
    return value


def format_of(manifest: Path) -> str | None:
    """The format that a manifest names; None where there is no manifest that can be read, so nothing of ours."""
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
    """Some rows of one tensor of a safetensors file, in their order; nothing else is read.

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
    """Remove what killed processes left behind while writing `path`."""
    remove_all_abandoned(path.parent, _escaped(path.name))


def remove_all_abandoned(folder: Path, names: str) -> None:
    """Remove what killed processes left behind in a folder while writing anything whose name is like `names`, a pattern."""
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
            # another process that sweeps may have been faster than the lock; then begin again
            if locked and partial.exists():
                try:
                    yield partial
                finally:
                    _remove(partial)
                return


@contextlib.contextmanager
def _lock(path: Path, *, without_locks: bool) -> Iterator[bool]:
    """Try to lock a file or folder; says whether it worked (`without_locks` where the file system has none)."""
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
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
