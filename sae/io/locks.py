"""One writer at a time per artefact on disk. These are OS file locks, so a killed process leaves none behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sae.errors import SaescopeError
from sae.io.files import refusing_full_disk


@contextmanager
def locked(
    folder: Path, *, wait: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold the write lock of `folder`. The lock file `.NAME.lock` beside it contains the pid of its holder.

    Args:
        folder: need not exist.
        wait: wait for another process to release the lock instead of raising.
        say: called with a message when waiting.

    Raises:
        SaescopeError: another process holds the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    with refusing_full_disk(folder):
        # no fallback to a soft lock, which would outlive a killed process
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            holder = f"process {path.read_text().strip() or 'unknown'}"
            if not wait:
                raise SaescopeError(
                    f"{holder} is writing {folder}; wait for it to finish, or use another name."
                ) from None
            say(f"waiting for {holder}, which is writing {folder}")
            lock.acquire(blocking=True)
    try:
        with refusing_full_disk(folder):
            path.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()
