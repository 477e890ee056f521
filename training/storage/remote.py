"""Files of an object store: S3 and whatever else fsspec knows, by URL. This is the only file that imports fsspec.

An object appears whole or not at all, and a conditional put makes one that must not be there. Keys and endpoints come from
where a store's own tools look for them (for S3 `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ~/.aws); none is in a config.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

from sae.errors import SaescopeError, first_line
from training.storage.store import Bytes


class Range(NamedTuple):
    """Some bytes of a file."""

    name: str
    start: int
    stop: int


def is_url(place: str) -> bool:
    """Whether a place is in a store and not a path."""
    return "://" in place


@lru_cache
def remote_store(url: str) -> "RemoteStore":
    """The store of a folder; nothing is asked of it yet.

    Raises:
        SaescopeError: a kind of store that is not known, or whose library is not installed.
    """
    return RemoteStore(url)


class RemoteStore:
    """A folder of an object store. A `training.storage.store.Store`."""

    def __init__(self, url: str) -> None:
        """Use `remote_store`, which opens each once."""
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.fs, self.root = fsspec.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            what = "pip install 'saescope[s3]'" if url.startswith("s3") else "is it spelt right?"
            raise SaescopeError(f"{url} cannot be opened ({first_line(error)}); {what}.") from None

    def place(self, name: str = "") -> str:
        """Its URL."""
        return f"{self.url}/{name}".rstrip("/")

    def names(self, folder: str) -> set[str]:
        """The objects directly in a folder."""
        return set(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """The same with their bytes."""
        return {_last(entry): int(entry["size"]) for entry in self._listed(folder) if entry["type"] == "file"}

    def folders(self, folder: str) -> set[str]:
        """What objects further down have in common."""
        return {_last(entry) for entry in self._listed(folder) if entry["type"] == "directory"}

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        with self._reached(folder):
            try:
                return list(self.fs.ls(self._path(folder), detail=True))
            except FileNotFoundError:
                return []

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with self._reached(name):
            try:
                return self.fs.info(self._path(name))["type"] == "file"
            except FileNotFoundError:
                return False

    def read(self, name: str) -> bytes | None:
        """Its bytes."""
        with self._reached(name):
            try:
                return bytes(self.fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Some bytes of some objects, asked for side by side."""
        with self._reached(ranges[0].name if ranges else ""):
            paths = [self._path(one.name) for one in ranges]
            found = self.fs.cat_ranges(
                paths, [one.start for one in ranges], [one.stop for one in ranges], max_gap=None, on_error="raise"
            )
        for one, data in zip(ranges, found, strict=True):
            if len(data) != one.stop - one.start:
                raise SaescopeError(f"{self.place(one.name)} has become shorter since it was opened; restore it.")
        return found

    def write(self, name: str, parts: Sequence[Bytes]) -> None:
        """Put it."""
        with self._reached(name):
            self.fs.pipe_file(self._path(name), b"".join(parts))

    def create(self, name: str, data: bytes) -> bool:
        """Put it if it is not there."""
        with self._reached(name):
            try:
                self.fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EIO):
                    raise
                # a store that says it otherwise, or that knows no conditions: to do a thing twice is harmless here
                if self.exists(name):
                    return False
                self.fs.pipe_file(self._path(name), data)
        return True

    def remove(self, name: str) -> None:
        """Remove it."""
        with self._reached(name), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def tidy(self, folder: str) -> None:
        """Nothing is ever left of an object."""

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Turn what goes wrong on the way into one sentence; libraries have tried again by themselves before."""
        try:
            yield
        except (SaescopeError, FileNotFoundError):
            raise
        except Exception as error:  # every store's library has errors of its own
            raise SaescopeError(
                f"{self.place(name)} cannot be reached ({_why(error)}); see that the store is up, and that its address and "
                "keys are right, and start again: what is there stays."
            ) from error


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _why(error: Any) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
