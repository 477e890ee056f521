"""The SQLite file for labels: opened on first use and created by the first write.

A file that is damaged, newer than this code or from another application is refused and left unchanged. If it isn't
writable (a shared disk, say), an in-memory copy is read, because SQLite writes extra files even for reading.
"""

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError

FORMAT_VERSION = 1
APPLICATION = 0x53414553
"""SQLite's application_id of these files: "SAES"."""
_WAIT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS labels (weights TEXT NOT NULL, feature INTEGER NOT NULL, author TEXT NOT NULL,
  text TEXT NOT NULL, score REAL, baseline REAL, judged TEXT NOT NULL, method TEXT NOT NULL, updated TEXT NOT NULL,
  PRIMARY KEY (weights, feature, author)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (weights TEXT NOT NULL, feature INTEGER NOT NULL, text TEXT NOT NULL,
  updated TEXT NOT NULL, PRIMARY KEY (weights, feature)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (weights TEXT NOT NULL, feature INTEGER NOT NULL, tag TEXT NOT NULL,
  PRIMARY KEY (weights, feature, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lists (weights TEXT NOT NULL, name TEXT NOT NULL, place INTEGER NOT NULL,
  feature INTEGER NOT NULL, PRIMARY KEY (weights, name, feature)) WITHOUT ROWID;
"""


class Database:
    """One connection, shared by all threads of a process with a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._copied: tuple[int, ...] | None = None

    @property
    def writable(self) -> bool:
        """Whether the file and its folder are writable."""
        return os.access(self.path.parent, os.W_OK) and (not self.path.exists() or os.access(self.path, os.W_OK))

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a query and return its rows; empty if there is no file. Reading doesn't create it.

        Raises:
            SaescopeError: the file can't be read.
        """
        with self._lock:
            if self._connection is None and not self.path.exists():
                return []
            return self._guarded(lambda connection: connection.execute(query, values).fetchall())

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; rolled back if the block fails.

        Raises:
            SaescopeError: the file can't be written.
        """
        with self._lock:
            if not self.writable:
                raise SaescopeError(self._refusal(sqlite3.OperationalError("readonly")))
            connection = self._guarded(_begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                _undo(connection)
                raise SaescopeError(self._refusal(error)) from error
            except BaseException:
                _undo(connection)
                raise

    @property
    def _files(self) -> list[Path]:
        """The file and its write-ahead log."""
        return [file for file in (self.path, self.path.with_name(f"{self.path.name}-wal")) if file.exists()]

    def stamp(self) -> tuple[int, ...]:
        """A value that changes when the file changes."""
        stats = [file.stat() for file in self._files]
        return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))

    def close(self) -> None:
        """Close the file; the next call reopens it."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _guarded(self, do: Callable[[sqlite3.Connection], Any]) -> Any:
        # someone else may change the file or make it writable
        if self._copied is not None and (self.writable or self._copied != self.stamp()):
            self.close()
        try:
            if self._connection is None:
                self._copied = None if self.writable else self.stamp()
                self._connection = self._open(self.path) if self._copied is None else self._copy()
            return do(self._connection)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # sqlite3 decodes file content in its messages as UTF-8
            raise SaescopeError(self._refusal(error)) from error

    def _copy(self) -> sqlite3.Connection:
        """Copy the file's content to memory."""
        with tempfile.TemporaryDirectory() as folder:
            for file in self._files:
                shutil.copyfile(file, Path(folder) / file.name)
            copied = self._open(Path(folder) / self.path.name)
            try:
                connection = _connect(":memory:")
                copied.backup(connection)
            finally:
                copied.close()
        return connection

    def _open(self, path: Path) -> sqlite3.Connection:
        connection = _connect(path)
        try:
            (application,), (version,), (n_tables,) = (
                connection.execute(query).fetchone()
                for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
            )
            if n_tables and application != APPLICATION:
                raise SaescopeError(f"{self.path} is a database of another application; move it away to store labels.")
            if version > FORMAT_VERSION:
                raise SaescopeError(
                    f"{self.path} has format version {version}, this code reads up to {FORMAT_VERSION}; update saescope."
                )
            if not n_tables:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION}; "
                    f"PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _refusal(self, error: sqlite3.Error | UnicodeDecodeError) -> str:
        reason = str(error)
        if "locked" in reason:
            return f"{self.path} has been locked by another program for over {_WAIT_S:g} s; try again."
        if "readonly" in reason or "unable to open" in reason:
            return f"{self.path} cannot be written ({reason}); make the run's folder writable."
        if "full" in reason:
            return f"{self.path} cannot grow: the disk is full; free some space and try again."
        return (
            f"{self.path} cannot be used as a database ({reason}); nothing in it was changed: move it aside, or repair it "
            f"with `sqlite3 {self.path.name} .recover`."
        )


class Unreadable(Database):
    """Stands in for an unreadable file: empty, and not writable."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path)
        self.reason = reason

    @property
    def writable(self) -> bool:
        """Always False."""
        return False

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:  # noqa: ARG002
        """Return no rows."""
        return []

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Raise SaescopeError with the reason why the file can't be read."""
        raise SaescopeError(self.reason)
        yield


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)


def _begin(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("BEGIN IMMEDIATE")
    return connection


def _undo(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.rollback()
