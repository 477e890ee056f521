"""Write and hash large files in chunks, with several threads.

A file's digest is the sha256 of the sha256 digests of its chunks, each of `CHUNK` bytes but the last. So chunks are hashed
in parallel while they are written, and nothing is read back from disk.
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
    """Write a new file, not atomically, and return its digest.

    Raises:
        OSError: writing failed; a partly written file stays. Free space is checked first, so that a disk that others
            write to is not filled up.
    """
    if shutil.disk_usage(path.parent).free < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with path.open("xb") as file:
        def write(start: int) -> bytes:
            chunk = data[start : start + CHUNK]
            done = 0
            while done < len(chunk):
                done += os.pwrite(file.fileno(), chunk[done:], start + done)
            if hasattr(os, "posix_fadvise"):  # keep these pages from evicting others from the page cache
                os.posix_fadvise(file.fileno(), start, len(chunk), os.POSIX_FADV_DONTNEED)
            return hashlib.sha256(chunk).digest()

        return _digest(write, len(data))


def digest(path: Path) -> str:
    """The digest of an existing file."""
    with path.open("rb") as file:
        def read(start: int) -> bytes:
            of_chunk, end = hashlib.sha256(), min(start + CHUNK, size)
            for at in range(start, end, _PIECE):
                of_chunk.update(os.pread(file.fileno(), min(_PIECE, end - at), at))
            return of_chunk.digest()

        size = os.fstat(file.fileno()).st_size
        return _digest(read, size)


def _digest(of_chunk: Callable[[int], bytes], n_bytes: int) -> str:
    """Hash chunks on half of the cores, because training uses the others."""
    starts = range(0, n_bytes, CHUNK)
    n_threads = min(8, len(starts), max(1, (os.cpu_count() or 1) // 2))
    if n_threads <= 1:
        digests = map(of_chunk, starts)
        return hashlib.sha256(b"".join(digests)).hexdigest()
    # unlike an executor's, these threads do not block interpreter exit
    with ThreadPool(n_threads) as pool:
        return hashlib.sha256(b"".join(pool.map(of_chunk, starts, chunksize=1))).hexdigest()
