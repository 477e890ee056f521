"""One writer at a time for an artefact on disk. The locks are the kernel's: a killed process leaves none behind."""

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
    """Hold the right to write `folder`; its lock file, `.NAME.lock` beside it, says which process holds it.

    Args:
        folder: need not exist.
        wait: for another process to let go, instead of refusing.
        say: told who is waited for.

    Raises:
        SaescopeError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    with refusing_full_disk(folder):
        # no soft lock where the file system has none: it would outlive a killed process
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            holder = f"process {path.read_text().strip() or 'unknown'}"
            if not wait:
                raise SaescopeError(
                    f"{holder} is writing {folder}; wait for it to end, or use another name."
                ) from None
            say(f"waiting for {holder}, which is writing {folder}")
            lock.acquire(blocking=True)
    try:
        with refusing_full_disk(folder):
            path.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()
