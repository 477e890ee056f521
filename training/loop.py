"""The training loop: next batch, step, log, evaluate, save. Independent of language models, files and displays."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from sae.errors import SaescopeError


class Interrupted(SaescopeError):
    """A signal stopped the training, after a checkpoint was saved."""


@runtime_checkable
class Steps(Protocol):
    """What the loop steps; `training.trainer.Trainer` implements it."""

    n_steps: int

    def step(self, acts: Mapping[str, Tensor]) -> None:
        """Take one step on raw rows `[n_rows, d]` by hook."""
        ...


class Every(NamedTuple):
    """Call `do` every `n_steps` steps, with the number of steps done."""

    n_steps: int
    do: Callable[[int], None]

    def due(self, n_steps: int) -> bool:
        """Whether to call it after `n_steps` steps."""
        return n_steps % self.n_steps == 0


class EverySeconds:
    """Call `do` at the first step after `seconds` seconds, or once `free` returns True after that."""

    def __init__(self, seconds: float, do: Callable[[int], None], free: Callable[[], bool] = lambda: True) -> None:
        self.seconds, self._do, self._free, self._last = seconds, do, free, time.monotonic()

    def due(self, _: int) -> bool:
        """Whether to call it now."""
        return time.monotonic() - self._last >= self.seconds and self._free()

    def do(self, n_steps: int) -> None:
        """Call it after `n_steps` steps and restart the timer."""
        self._last = time.monotonic()
        self._do(n_steps)


def fit(
    trainers: Sequence[Steps], batches: Iterable[Mapping[str, Tensor]], n_steps: int, *, log: Every | None = None,
    evaluate: Every | None = None, save: Every | EverySeconds | None = None, advance: Callable[[], None] = lambda: None,
    agree: Callable[[bool, bool], tuple[bool, bool]] = lambda stop, save: (stop, save), echo_seconds: float = 0.0,
) -> None:
    """Step every trainer on each batch until it has taken `n_steps` steps in total, including earlier ones.

    Args:
        trainers: one or several, all at the same step.
        batches: raw rows by hook; only as many are read as are needed.
        n_steps: total steps.
        log: also called after the last step.
        evaluate: not called after the last step, since the final evaluation follows.
        save: also called after the last step and on a signal.
        advance: called after every step.
        agree: combines (stop, save) of this rank with those of the other ranks.
        echo_seconds: a second signal within this time is taken as the first one, forwarded by the parent process.

    Raises:
        SaescopeError: there are too few batches.
        Interrupted: SIGINT or SIGTERM arrived, and `save` was called. Without `save`, signals are not handled here.
    """
    done, running = trainers[0].n_steps, iter(batches)
    with _signals(catch=save is not None, echo_seconds=echo_seconds) as interrupted:
        while done < n_steps:
            if (acts := next(running, None)) is None:
                raise SaescopeError(f"the batches ended after step {done} of {n_steps}; provide more, or lower the budget.")
            for trainer in trainers:
                trainer.step(acts)
            done += 1
            advance()
            last = done == n_steps
            stopped, save_due = agree(interrupted(), save is not None and save.due(done))
            if log and (log.due(done) or last):
                log.do(done)
            if evaluate and evaluate.due(done) and not last:
                evaluate.do(done)
            if save and (save_due or last or stopped):
                save.do(done)
            if stopped and not last:
                raise Interrupted(f"stopped by a signal after step {done} of {n_steps}; a checkpoint was saved.")


@contextmanager
def _signals(*, catch: bool, echo_seconds: float) -> Iterator[Callable[[], bool]]:
    """Record SIGINT and SIGTERM for the loop to check; a second signal stops at once with KeyboardInterrupt."""
    came: list[float] = []

    def handler(*_: object) -> None:
        now = time.monotonic()
        if came and now - came[0] >= echo_seconds:
            raise KeyboardInterrupt
        came.append(now)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM) if catch}
    except ValueError:  # not the main thread (a notebook's worker): signals stay as they are
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
