"""Asynchronous checkpoints: the state is copied to host memory, and a background thread hashes and writes it.

There is memory for one snapshot, so one checkpoint is written at a time. `save` waits while another is being written: with
`checkpoint_every: 5%` checkpoints then fall on the same steps on any disk. With a time (`10 min`) the step doesn't matter,
so the loop first checks that the saver is `free` and keeps training until it is.
"""

from collections.abc import Callable, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any, final

from sae.errors import SaescopeError
from sae.io.snapshot import Snapshot
from training.activations.batches import Address
from training.checkpoint import Checkpoints
from training.loop import Interrupted
from training.trainer import Trainer


@final
class Saver:
    """Save the state of a group of trainers. Use as a context manager, which waits for the last write on exit."""

    def __init__(self, checkpoints: Checkpoints, trainers: Sequence[Trainer], say: Callable[[str], None]) -> None:
        """`say` prints a line; it is called from the background thread."""
        self.checkpoints, self.trainers, self.say = checkpoints, trainers, say
        self._snapshots: list[Snapshot] = []
        # a daemon thread: unlike an executor's it doesn't keep the process from exiting at once
        self._pool = ThreadPool(1)
        self._writing: AsyncResult[SaescopeError | None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until the last checkpoint is on disk, except after a second Ctrl-C.

        Raises:
            SaescopeError: training finished or was stopped by a signal, but its last state could not be written.
        """
        try:
            if self._writing and kind is not KeyboardInterrupt:
                self._writing.wait()
                if kind is None or issubclass(kind, Interrupted):
                    self._finish()
        finally:
            self._pool.close()

    @property
    def free(self) -> bool:
        """Whether no checkpoint is being written, so that `save` would not block."""
        return self._writing is None or self._writing.ready()

    def save(self, next_batch: Address) -> None:
        """Snapshot the trainers' current state and write it in the background. A failed write only prints a warning."""
        self._wait()
        facts = self.checkpoints.facts(self.trainers, next_batch)
        states = [trainer.tensors() for trainer in self.trainers]
        self._snapshots = self._snapshots or [Snapshot(state) for state in states]
        for snapshot, state in zip(self._snapshots, states, strict=True):
            snapshot.take(state)
        self._writing = self._pool.apply_async(self._write, (facts,))

    def _finish(self) -> None:
        if (error := self._wait()) is not None:
            then = "continues from there" if self.checkpoints.finished() else "starts over"
            raise SaescopeError(f"{error} {self._kept()}; --resume {then}.")

    def _wait(self) -> SaescopeError | None:
        """Wait for the last write; return its error, if any."""
        return self._writing.get() if self._writing else None

    def _write(self, facts: dict[str, Any]) -> SaescopeError | None:
        try:
            self.checkpoints.write(facts, self._snapshots)
        except (SaescopeError, OSError) as refused:
            error = refused if isinstance(refused, SaescopeError) else _sentence(refused)
            self.say(f"warning: step {facts['n_steps']} was not saved: {error} {self._kept()}; training continues.")
            return error
        return None

    def _kept(self) -> str:
        there = self.checkpoints.finished()
        return f"The last checkpoint is {there[-1]}" if there else "There is no checkpoint yet"


def _sentence(error: OSError) -> SaescopeError:
    return SaescopeError(f"{error.filename or 'a checkpoint'}: {error.strerror}; free some space or choose another folder.")
