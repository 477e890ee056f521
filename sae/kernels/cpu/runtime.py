"""How the cpu backend runs its loops: compiled once, on threads of its own, under one lock.

numba's own threading layers are not used. Their `workqueue` aborts the process when two threads call parallel kernels,
`omp` dies after a fork, and a layer may be missing altogether; here a loop is an ordinary function over `lo:hi` that
releases the interpreter lock, and the ranges are dealt to a few Python threads. The ranges depend on the work only,
never on the number of threads, so that every result is bit-identical whatever that number is.
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
"""Held through every operation of the backend: operations share score buffers, and would only fight for cores."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}

timings: dict[str, float] | None = None
"""Seconds by operation, added up while this is a dict; for benchmarks."""

FASTMATH = {"reassoc", "contract", "nsz"}
"""Sums may be reordered so that they vectorise; NaN and infinity keep their meaning."""


def jit(loop: Callable) -> Callable:
    """Compile a loop on first call, and keep the machine code on disk where that is possible.

    numba looks for a writable place in NUMBA_CACHE_DIR, beside the source, then in the user's cache directory; where
    there is none, the loop is compiled anew in each process.
    """
    try:
        return numba.njit(loop, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    except RuntimeError:  # numba's "no locator available": nowhere to write
        return numba.njit(loop, nogil=True, fastmath=FASTMATH, error_model="numpy")


def _pool(n_threads: int) -> ThreadPoolExecutor:
    """The helper threads; made anew in a forked child, which has none of its parent's."""
    key = (os.getpid(), n_threads)
    if key not in _pools:
        _pools.clear()
        _pools[key] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="saescope")
    return _pools[key]


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Add what happens inside to `timings`."""
    if timings is None:
        yield
        return
    began = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - began


THREAD_COLUMNS = 32
"""Fewest columns of a dense product that a thread computes."""


@contextlib.contextmanager
def columns(n: int) -> Iterator[None]:
    """Dense products of (at least) n columns inside, on no more threads than leaves each THREAD_COLUMNS.

    Math libraries deal columns to threads and take narrow pieces through loops that add in another order, so that the
    bits of a narrow product would depend on the number of threads.
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

    Returns what the calls returned, in the order of the ranges. The loops write to disjoint places.
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
    """Take one range after the other until none is left."""
    while (i := next(ticket)) < len(results):
        results[i] = loop(bounds[i], bounds[i + 1], *args)


def even(n: int, n_ranges: int = 32) -> list[int]:
    """Bounds of (at most) `n_ranges` ranges of equal length over n items."""
    n_ranges = max(1, min(n, n_ranges))
    return [n * i // n_ranges for i in range(n_ranges + 1)]


def _forget_after_fork() -> None:
    """A child may be forked while another thread holds the lock."""
    global LOCK
    LOCK = threading.RLock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
