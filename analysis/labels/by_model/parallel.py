"""A few questions at a time, each answer kept as it comes, also those that come after an interruption."""

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any


def in_parallel(
    jobs: Iterable[tuple[Any, Callable[[], Any]]], n: int, keep: Callable[[Any, Any], None], stop: Callable[[], None]
) -> None:
    """Run jobs in `n` threads; those not yet begun are never made if one fails or the user interrupts.

    Args:
        jobs: what each is for, and what it does; drawn in the caller's thread, one at a time.
        n: threads; with 1 the jobs run in the caller's own.
        keep: told of each result, in the caller's thread, in the order in which they come.
        stop: called once when no more jobs will be run. Those under way are then waited for, and their results kept; a
            second interruption leaves them.

    Raises:
        Exception: the first that a job raised.
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
    """Threads that do not keep the process alive."""

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
        """The next result; raises what its job raised."""
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
            except BaseException as error:  # raised again where the result is asked for
                self._done.put((item, None, error))
