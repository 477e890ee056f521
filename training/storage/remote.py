"""Files in an object store (S3 or anything fsspec supports), by URL. The only file that imports fsspec.

Objects are written atomically, and `create` is a conditional put. Keys and endpoints come from the store's usual settings
(for S3 `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ~/.aws), never from a config.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

from sae.errors import SaescopeError, first_line
from training.storage.store import Bytes


class Range(NamedTuple):
    """A byte range of a file."""

    name: str
    start: int
    stop: int


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path."""
    return "://" in place


@lru_cache
def remote_store(url: str) -> "RemoteStore":
    """The store of a folder at a URL; doesn't connect yet.

    Raises:
        SaescopeError: unknown kind of store, or its library is not installed.
    """
    return RemoteStore(url)


class RemoteStore:
    """A folder in an object store. Implements `training.storage.store.Store`."""

    def __init__(self, url: str) -> None:
        """Use `remote_store` instead, which opens each URL once."""
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.fs, self.root = fsspec.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            what = "pip install 'saescope[s3]'" if url.startswith("s3") else "is it spelt right?"
            raise SaescopeError(f"{url} cannot be opened ({first_line(error)}); {what}.") from None

    def place(self, name: str = "") -> str:
        """The URL of a file."""
        return f"{self.url}/{name}".rstrip("/")

    def names(self, folder: str) -> set[str]:
        """The objects directly in a folder."""
        return set(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects directly in a folder, with their sizes in bytes."""
        return {_last(entry): int(entry["size"]) for entry in self._listed(folder) if entry["type"] == "file"}

    def folders(self, folder: str) -> set[str]:
        """The subfolders directly in a folder: common prefixes of objects."""
        return {_last(entry) for entry in self._listed(folder) if entry["type"] == "directory"}

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        with self._reached(folder):
            try:
                return list(self.fs.ls(self._path(folder), detail=True))
            except FileNotFoundError:
                return []

    def exists(self, name: str) -> bool:
        """Whether the object exists."""
        with self._reached(name):
            try:
                return self.fs.info(self._path(name))["type"] == "file"
            except FileNotFoundError:
                return False

    def read(self, name: str) -> bytes | None:
        """The bytes of an object, or None."""
        with self._reached(name):
            try:
                return bytes(self.fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read byte ranges of several objects concurrently."""
        with self._reached(ranges[0].name if ranges else ""):
            paths = [self._path(one.name) for one in ranges]
            found = self.fs.cat_ranges(
                paths, [one.start for one in ranges], [one.stop for one in ranges], max_gap=None, on_error="raise"
            )
        for one, data in zip(ranges, found, strict=True):
            if len(data) != one.stop - one.start:
                raise SaescopeError(f"{self.place(one.name)} is shorter than it was when opened; restore it.")
        return found

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Put an object."""
        with self._reached(name):
            self.fs.pipe_file(self._path(name), b"".join(parts))

    def create(self, name: str, data: bytes) -> bool:
        """Put an object if it doesn't exist; False if it does."""
        with self._reached(name):
            try:
                self.fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EIO):
                    raise
                # a store that reports this differently, or has no conditional put: overwriting is harmless here
                if self.exists(name):
                    return False
                self.fs.pipe_file(self._path(name), data)
        return True

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._reached(name), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def tidy(self, folder: str) -> None:
        """Does nothing: an object store keeps no partial objects."""

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Turn a store's errors into one message; its library has already retried."""
        try:
            yield
        except (SaescopeError, FileNotFoundError):
            raise
        except Exception as error:  # each store's library has its own error types
            raise SaescopeError(
                f"{self.place(name)} cannot be reached ({_why(error)}); check that the store is up and its address and "
                "keys are right, then start again: what was written is kept."
            ) from error


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _why(error: Any) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
