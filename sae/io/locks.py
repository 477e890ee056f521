"""One writer at a time for an artefact on disk."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.errors import SaescopeError
from sae.io.files import refusing_full_disk


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the right to write `folder`; the lock is the kernel's, so a killed process leaves none behind.

    Raises:
        SaescopeError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SaescopeError(
                f"process {file.read().strip() or 'unknown'} is writing {folder}; wait for it to end, or use another name."
            ) from None
        with refusing_full_disk(folder):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
