"""Running the cpu backend's loops: compiled once, on its own thread pool, under one lock.

numba's threading layers are not used: `workqueue` aborts the process when two threads call parallel kernels, `omp` dies
after a fork, and a layer may be missing. Here a loop is an ordinary function over `lo:hi` that releases the GIL, and a few
Python threads work through the ranges. The ranges depend on the work, never on the number of threads, so results are
bitwise equal for any number of threads.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import torch

LOCK = threading.RLock()
"""Held during every operation: operations share score buffers, and running them in parallel would not be faster."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}

timings: dict[str, float] | None = None
"""Seconds per operation, accumulated while this is a dict; for benchmarks."""

FASTMATH = {"reassoc", "contract", "nsz"}
"""Allow reordering of sums, for vectorisation; NaN and infinity keep their semantics."""


def jit(loop: Callable) -> Callable:
    """Compile a loop on first call, and cache the machine code on disk if possible.

    numba looks for a writable folder: NUMBA_CACHE_DIR, beside the source, then the user's cache directory. If there is
    none, each process compiles the loop again.
    """
    try:
        return numba.njit(loop, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    except RuntimeError:  # numba's "no locator available": nowhere to write
        return numba.njit(loop, nogil=True, fastmath=FASTMATH, error_model="numpy")


def _pool(n_threads: int) -> ThreadPoolExecutor:
    """The thread pool; recreated in a forked child, which does not inherit the threads."""
    key = (os.getpid(), n_threads)
    if key not in _pools:
        _pools.clear()
        _pools[key] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="saescope")
    return _pools[key]


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the time of the block to `timings`."""
    if timings is None:
        yield
        return
    began = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - began


THREAD_COLUMNS = 32
"""Minimum columns of a dense product per thread."""


@contextlib.contextmanager
def columns(n: int) -> Iterator[None]:
    """Limit threads for dense products of (at least) n columns in the block to THREAD_COLUMNS columns per thread.

    BLAS libraries split columns over threads and use loops with another summation order for narrow pieces, so the bits
    of a narrow product would depend on the number of threads.
    """
    before = torch.get_num_threads()
    fitting = max(1, min(before, n // THREAD_COLUMNS))
    if fitting == before:
        yield
        return
    torch.set_num_threads(fitting)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(loop: Callable, bounds: Sequence[int], *args: object) -> list:
    """Call `loop(lo, hi, *args)` for each range of `bounds` on up to `torch.get_num_threads()` threads.

    Returns the results of the calls, in the order of the ranges. The loops must write to disjoint memory.
    """
    n_ranges = len(bounds) - 1
    n_threads = min(torch.get_num_threads(), n_ranges)
    results: list = [None] * n_ranges
    ticket = itertools.count()  # next() on it is atomic
    with timed(loop.__name__):
        helpers = [_pool(n_threads).submit(_work, loop, bounds, args, ticket, results) for _ in range(n_threads - 1)]
        _work(loop, bounds, args, ticket, results)
        for helper in helpers:
            helper.result()
    return results


def _work(loop: Callable, bounds: Sequence[int], args: tuple, ticket: Iterator[int], results: list) -> None:
    """Process ranges until none is left."""
    while (i := next(ticket)) < len(results):
        results[i] = loop(bounds[i], bounds[i + 1], *args)


def even(n: int, n_ranges: int = 32) -> list[int]:
    """Bounds of at most `n_ranges` equal ranges over n items."""
    n_ranges = max(1, min(n, n_ranges))
    return [n * i // n_ranges for i in range(n_ranges + 1)]


def _forget_after_fork() -> None:
    """Reset lock and pools in a forked child: another thread may have held the lock."""
    global LOCK
    LOCK = threading.RLock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
