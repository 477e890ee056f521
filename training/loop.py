"""The training loop: next batch, step, log, evaluate, save. It knows nothing of language models, files or displays."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from sae.errors import SaescopeError


class Interrupted(SaescopeError):
    """A signal ended the training after it was saved."""


@runtime_checkable
class Steps(Protocol):
    """What the loop advances; `training.trainer.Trainer` is one."""

    n_steps: int

    def step(self, acts: Mapping[str, Tensor]) -> None:
        """One step on raw rows `[n_rows, d]` by hook."""
        ...


class Every(NamedTuple):
    """Something to do every so many steps, told the number of steps done."""

    n_steps: int
    do: Callable[[int], None]

    def due(self, n_steps: int) -> bool:
        """Whether it is time, after so many steps."""
        return n_steps % self.n_steps == 0


class EverySeconds:
    """Something to do at the first step after so many seconds, or as soon then as one is `free` to do it."""

    def __init__(self, seconds: float, do: Callable[[int], None], free: Callable[[], bool] = lambda: True) -> None:
        self.seconds, self._do, self._free, self._last = seconds, do, free, time.monotonic()

    def due(self, _: int) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._last >= self.seconds and self._free()

    def do(self, n_steps: int) -> None:
        """Do it, after so many steps."""
        self._last = time.monotonic()
        self._do(n_steps)


def fit(
    trainers: Sequence[Steps], batches: Iterable[Mapping[str, Tensor]], n_steps: int, *, log: Every | None = None,
    evaluate: Every | None = None, save: Every | EverySeconds | None = None, advance: Callable[[], None] = lambda: None,
    agree: Callable[[bool, bool], tuple[bool, bool]] = lambda stop, save: (stop, save), echo_seconds: float = 0.0,
) -> None:
    """Step every trainer on each batch until they have taken `n_steps` steps, those taken before included.

    Args:
        trainers: one or several, all after the same number of steps.
        batches: raw rows by hook; no more of them are asked for than are needed.
        n_steps: in all.
        log: also done after the last step.
        evaluate: not done after the last step, where the final evaluation follows.
        save: also done after the last step and when a signal comes.
        advance: called after every step.
        agree: with other ranks on whether to stop and whether it is time to save, from what this one thinks.
        echo_seconds: a second signal that comes so soon is the first once more, passed on by whoever began this process.

    Raises:
        SaescopeError: there are too few batches.
        Interrupted: SIGINT or SIGTERM came, and `save` was called. Without `save` signals do what they do elsewhere.
    """
    done, running = trainers[0].n_steps, iter(batches)
    with _signals(catch=save is not None, echo_seconds=echo_seconds) as interrupted:
        while done < n_steps:
            if (acts := next(running, None)) is None:
                raise SaescopeError(f"the batches ended after step {done} of {n_steps}; give more, or a smaller budget.")
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
                raise Interrupted(f"stopped by a signal after step {done} of {n_steps}; everything is saved.")


@contextmanager
def _signals(*, catch: bool, echo_seconds: float) -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question the loop asks; a second one ends at once, as usual."""
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
