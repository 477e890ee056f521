"""Checkpoints that do not stop the training: a snapshot in host memory, written and hashed by a thread of its own.

One is written at a time, from the one snapshot there is memory for. Who asks for another meanwhile waits, so that a stretch
of training (`checkpoint_every: 5%`) means the same steps on any disk. A time (`10 min`) is no promise of a step: there the
loop asks first whether the saver is `free`, and steps on until it is.
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
    """Saves the state of a group of trainers. Use it as a context manager, which waits at its end."""

    def __init__(self, checkpoints: Checkpoints, trainers: Sequence[Trainer], say: Callable[[str], None]) -> None:
        """`say` shows a line to whoever looks on, from any thread."""
        self.checkpoints, self.trainers, self.say = checkpoints, trainers, say
        self._snapshots: list[Snapshot] = []
        # its thread, unlike an executor's, is in nobody's way when the process is told to end at once
        self._pool = ThreadPool(1)
        self._writing: AsyncResult[SaescopeError | None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until everything that was saved is on the disk, but not after a second Ctrl-C.

        Raises:
            SaescopeError: the training ended as it should, or by a signal, and its last state could not be written.
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
        """Nothing is being written, so that `save` would not wait for the disk."""
        return self._writing is None or self._writing.ready()

    def save(self, next_batch: Address) -> None:
        """Take the trainers' state as it is now, and have it written. One that cannot be written is said, not raised."""
        self._wait()
        facts = self.checkpoints.facts(self.trainers, next_batch)
        states = [trainer.tensors() for trainer in self.trainers]
        self._snapshots = self._snapshots or [Snapshot(state) for state in states]
        for snapshot, state in zip(self._snapshots, states, strict=True):
            snapshot.take(state)
        self._writing = self._pool.apply_async(self._write, (facts,))

    def _finish(self) -> None:
        if (error := self._wait()) is not None:
            then = "goes on from there" if self.checkpoints.finished() else "begins anew"
            raise SaescopeError(f"{error} {self._kept()}; --resume {then}.")

    def _wait(self) -> SaescopeError | None:
        """What went wrong with the last one."""
        return self._writing.get() if self._writing else None

    def _write(self, facts: dict[str, Any]) -> SaescopeError | None:
        try:
            self.checkpoints.write(facts, self._snapshots)
        except (SaescopeError, OSError) as refused:
            error = refused if isinstance(refused, SaescopeError) else _sentence(refused)
            self.say(f"warning: step {facts['n_steps']} is not saved: {error} {self._kept()}; the training goes on.")
            return error
        return None

    def _kept(self) -> str:
        there = self.checkpoints.finished()
        return f"The last checkpoint is {there[-1]}" if there else "There is no checkpoint yet"


def _sentence(error: OSError) -> SaescopeError:
    return SaescopeError(f"{error.filename or 'a checkpoint'}: {error.strerror}; free some space or choose another folder.")
