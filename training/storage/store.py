"""Files in one folder, by name: on a local disk, on a shared file system, or in an object store.

Only operations that every kind of storage has are needed: atomic writes, and exclusive creation. Nothing is renamed, locked
or appended to.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from sae.io.files import atomic_file, refusing_full_disk, remove_all_abandoned

Bytes = bytes | memoryview


@runtime_checkable
class Store(Protocol):
    """The files of one folder; names are relative to it, with slashes."""

    def place(self, name: str = "") -> str:
        """The location of a file, for a message."""
        ...

    def names(self, folder: str) -> set[str]:
        """The names of the files directly in `folder`, without its path; empty if there is no such folder."""
        ...

    def folders(self, folder: str) -> set[str]:
        """The names of the folders directly in `folder`."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a small file; None if it doesn't exist."""
        ...

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Write or replace a file atomically."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Create a small file; False if it already exists."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...

    def tidy(self, folder: str) -> None:
        """Remove partial files that killed processes left in a folder."""
        ...


class LocalStore:
    """A folder on a local disk or a shared file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str = "") -> str:
        """The path of a file."""
        return str(self.folder / name if name else self.folder)

    def names(self, folder: str) -> set[str]:
        """The files in a folder."""
        try:
            return {entry.name for entry in os.scandir(self.folder / folder) if entry.is_file()}
        except FileNotFoundError:
            return set()

    def folders(self, folder: str) -> set[str]:
        """The folders in a folder."""
        try:
            return {entry.name for entry in os.scandir(self.folder / folder) if entry.is_dir()}
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Write to a temporary file and rename it."""
        with atomic_file(self.folder / name) as file:
            for part in parts:
                file.write(part)

    def create(self, name: str, data: bytes) -> bool:
        """Write to a temporary file and hard-link it, which fails if the name is taken, even on network file systems."""
        path = self.folder / name
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with refusing_full_disk(path), contextlib.suppress(FileNotFoundError):  # the empty folder was just removed
                return _linked(path, data)

    def remove(self, name: str) -> None:
        """Remove a file, and its folder if that is empty then."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def tidy(self, folder: str) -> None:
        """Remove temporary files that no process is writing."""
        remove_all_abandoned(self.folder / folder, "*")


def _linked(path: Path, data: bytes) -> bool:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        beside.write_bytes(data)
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return _create_in_place(path, data)  # a file system without hard links
    finally:
        beside.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True
