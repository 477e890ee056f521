"""The training loop: next batch, step, log, evaluate, save. It knows nothing of language models."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from sae.errors import SaescopeError
from training.activations.batches import Address, Batches
from training.checkpoint import Checkpoints
from training.config.schema import TrainConfig
from training.display import Task
from training.evaluate import HeldOut
from training.schedule import Clock
from training.trainer import Trainer


class Interrupted(SaescopeError):
    """A signal ended the training after it was saved."""


@runtime_checkable
class Logger(Protocol):
    """Somewhere metrics go."""

    def log(self, metrics: dict[str, Any]) -> None:
        """One line of metrics."""
        ...

    def close(self, summary: dict[str, Any]) -> None:
        """The last word."""
        ...


def fit(
    trainers: Sequence[Trainer], batches: Batches, start: Address, clock: Clock, *, config: TrainConfig,
    eval_steps: int, prefetch: int, heldout: HeldOut, loggers: Sequence[Sequence[Logger]], checkpoints: Checkpoints,
    task: Task,
) -> None:
    """Train every trainer on one stream of batches until the budget is spent.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    log_steps, save_steps = clock.steps(config.log_every), clock.steps(config.checkpoint_every)
    stream = batches.stream(start, prefetch=prefetch)
    n_steps = trainers[0].n_steps
    with _signals() as interrupted:
        while n_steps < clock.n_steps:
            batch = next(stream)
            for trainer in trainers:
                trainer.step(batch.acts)
            n_steps += 1
            task.advance(clock.batch_rows)
            last = n_steps == clock.n_steps
            if n_steps % log_steps == 0 or last:
                _log(trainers, loggers, task, n_steps, clock)
            if n_steps % eval_steps == 0 and not last:
                _evaluate(trainers, heldout, loggers, n_steps, clock)
            if n_steps % save_steps == 0 or last or interrupted():
                checkpoints.save(trainers, _after(batch.address))
            if interrupted() and not last:
                stream.close()
                raise Interrupted(f"stopped by a signal after step {n_steps} of {clock.n_steps}; everything is saved.")
    stream.close()


def _after(address: Address) -> Address:
    """The next batch; if the superblock has none left, the stream goes on to the following one by itself."""
    return address._replace(j=address.j + 1)


def _log(
    trainers: Sequence[Trainer], loggers: Sequence[Sequence[Logger]], task: Task, n_steps: int, clock: Clock
) -> None:
    for trainer, outs in zip(trainers, loggers, strict=True):
        metrics = trainer.metrics()
        line = {"step": n_steps, "rows": n_steps * clock.batch_rows, **metrics, "tokens_per_s": task.per_second()}
        for out in outs:
            out.log(line)
    shown = {key: metrics[key] for key in ("l0", "fve", "dead")}
    task.note(shown)


def _evaluate(
    trainers: Sequence[Trainer], heldout: HeldOut, loggers: Sequence[Sequence[Logger]], n_steps: int, clock: Clock
) -> None:
    for trainer, outs in zip(trainers, loggers, strict=True):
        measured = heldout.measure(trainer.sae, trainer.config.site)
        line = {"step": n_steps, "rows": n_steps * clock.batch_rows}
        for out in outs:
            out.log(line | {f"heldout/{key}": value for key, value in measured.items()})


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question the loop asks; a second one ends at once, as usual."""
    came: list[int] = []

    def handler(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (a notebook's worker): signals stay as they are
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
