"""Large files, written and hashed in chunks by several threads.

A file's digest is the sha256 of the sha256 of its chunks, `CHUNK` bytes each but the last. So chunks can be hashed side by
side, and while they are written: nothing is read back from the disk.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

CHUNK = 1 << 26
_PIECE = 1 << 23


def write_hashed(path: Path, data: memoryview) -> str:
    """Write a new file, not atomically, and give its digest.

    Raises:
        OSError: as any writing; what is there by then stays. A disk that has no room for all of it is not filled up first,
            for others may be writing there too.
    """
    if shutil.disk_usage(path.parent).free < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with path.open("xb") as file:
        def write(start: int) -> bytes:
            chunk = data[start : start + CHUNK]
            done = 0
            while done < len(chunk):
                done += os.pwrite(file.fileno(), chunk[done:], start + done)
            if hasattr(os, "posix_fadvise"):  # to the disk at once, and not in the place of what is read from memory
                os.posix_fadvise(file.fileno(), start, len(chunk), os.POSIX_FADV_DONTNEED)
            return hashlib.sha256(chunk).digest()

        return _digest(write, len(data))


def digest(path: Path) -> str:
    """The digest of a file that is there."""
    with path.open("rb") as file:
        def read(start: int) -> bytes:
            of_chunk, end = hashlib.sha256(), min(start + CHUNK, size)
            for at in range(start, end, _PIECE):
                of_chunk.update(os.pread(file.fileno(), min(_PIECE, end - at), at))
            return of_chunk.digest()

        size = os.fstat(file.fileno()).st_size
        return _digest(read, size)


def _digest(of_chunk: Callable[[int], bytes], n_bytes: int) -> str:
    """Half of the cores, for the other half is at work."""
    starts = range(0, n_bytes, CHUNK)
    n_threads = min(8, len(starts), max(1, (os.cpu_count() or 1) // 2))
    if n_threads <= 1:
        digests = map(of_chunk, starts)
        return hashlib.sha256(b"".join(digests)).hexdigest()
    # these threads, unlike an executor's, are in nobody's way when the process is told to end at once
    with ThreadPool(n_threads) as pool:
        return hashlib.sha256(b"".join(pool.map(of_chunk, starts, chunksize=1))).hexdigest()
