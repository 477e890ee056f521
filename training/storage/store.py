"""Files below one folder, by name: on a disk here, on one of a shared file system, in an object store.

What is asked of a place is little, so that every kind has it: a file appears whole or not at all, and a file can be made
that must not be there yet. Nothing is renamed, locked or appended to.
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
        """Where a file lies, for a message."""
        ...

    def names(self, folder: str) -> set[str]:
        """The names of the files directly in `folder`, without it; none where there is no such folder."""
        ...

    def folders(self, folder: str) -> set[str]:
        """The names of the folders directly in `folder`."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""
        ...

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Write a file, replacing what is there; it appears whole."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file that must not be there; False if it is."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def tidy(self, folder: str) -> None:
        """Remove what killed processes have left of files in a folder."""
        ...


class LocalStore:
    """A folder of this machine, or of a file system that several share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str = "") -> str:
        """Its path."""
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
        """Whether there is such a file."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes | None:
        """Its bytes."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Write it beside and rename it."""
        with atomic_file(self.folder / name) as file:
            for part in parts:
                file.write(part)

    def create(self, name: str, data: bytes) -> bool:
        """Write it beside and link it, which fails where the name is taken, on network file systems too."""
        path = self.folder / name
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with refusing_full_disk(path), contextlib.suppress(FileNotFoundError):  # the folder was empty, and removed
                return _linked(path, data)

    def remove(self, name: str) -> None:
        """Remove it, and its folder with the last file in it."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def tidy(self, folder: str) -> None:
        """Remove files that were not renamed, and are held by nobody."""
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
        return _create_in_place(path, data)  # a file system without links
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
