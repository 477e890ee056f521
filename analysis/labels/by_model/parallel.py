"""Run requests concurrently and save each result as it arrives, including those that arrive after an interruption."""

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any


def in_parallel(
    jobs: Iterable[tuple[Any, Callable[[], Any]]], n: int, keep: Callable[[Any, Any], None], stop: Callable[[], None]
) -> None:
    """Run jobs in `n` threads; if one fails or the user interrupts, no new ones are started.

    Args:
        jobs: pairs of item and function; iterated in the caller's thread.
        n: number of threads; with 1, jobs run in the caller's thread.
        keep: called with each item and result, in the caller's thread, in order of completion.
        stop: called once when no more jobs will start. Running jobs are then awaited and their results kept; a second
            interruption discards them.

    Raises:
        Exception: the first exception of a job.
    """
    if n == 1:
        for item, job in jobs:
            keep(item, job())
        return
    workers = _Workers(n)
    try:
        for item, job in jobs:
            workers.begin(item, job)
            if workers.n_under_way == n:
                keep(*workers.next())
        while workers.n_under_way:
            keep(*workers.next())
    except BaseException:
        stop()
        workers.keep_the_rest(keep)
        raise
    finally:
        workers.end()


class _Workers:
    """A pool of daemon threads."""

    def __init__(self, n: int) -> None:
        self._todo: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self.n, self.n_under_way = n, 0
        for _ in range(n):
            threading.Thread(target=self._work, daemon=True).start()

    def begin(self, item: Any, job: Callable[[], Any]) -> None:
        self.n_under_way += 1
        self._todo.put((item, job))

    def next(self) -> tuple[Any, Any]:
        """The next result; re-raises its job's exception."""
        item, result, error = self._done.get()
        self.n_under_way -= 1
        if error is not None:
            raise error
        return item, result

    def keep_the_rest(self, keep: Callable[[Any, Any], None]) -> None:
        while self.n_under_way:
            item, result, error = self._done.get()
            self.n_under_way -= 1
            if error is None:
                keep(item, result)

    def end(self) -> None:
        for _ in range(self.n):
            self._todo.put(None)

    def _work(self) -> None:
        while (one := self._todo.get()) is not None:
            item, job = one
            try:
                self._done.put((item, job(), None))
            except BaseException as error:  # re-raised in `next`
                self._done.put((item, None, error))
