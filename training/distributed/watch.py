"""Watchdog for ranks that die, hang or run out of memory: the others exit, and one of them reports which rank it was.

A thread in each rank sends a heartbeat with its number of collectives once a second, and checks those of the others:

    died       its process is gone (noticed at once on the same machine), or silent for SILENT_S
    hangs      another rank has reached a later collective, and neither has made progress for `train.patience`
    failed     it has reported an error itself (`launch.tell`)

Ranks that are blocked in a collective don't notice any of this, so the thread exits the process GRACE_S after the error.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import final

import psutil

from training.distributed import launch
from training.distributed.wire import Wire

BEAT_S = 1.0
SILENT_S = 30.0
"""After this long without a heartbeat, a rank on another machine counts as dead."""
GRACE_S = 3.0
"""Time for a process to exit by itself after an error."""
CODE = 2
"""Exit code if it doesn't."""


@dataclass
class Seen:
    """The last known state of another rank."""

    beat: str = ""
    since: float = field(default_factory=time.monotonic)
    n_begun: int = 0
    moved: float = field(default_factory=time.monotonic)

    def hear(self, beat: str) -> None:
        """Record a heartbeat."""
        now = time.monotonic()
        if beat != self.beat:
            self.beat, self.since = beat, now
        n_begun = int(beat.split()[1])
        if n_begun != self.n_begun:
            self.n_begun, self.moved = n_begun, now


@final
class Watch:
    """The watchdog thread. Use as a context manager."""

    def __init__(self, wire: Wire, patience: float) -> None:
        """`patience`: seconds that a rank may keep the others waiting."""
        self.wire, self.patience = wire, patience
        self._store = launch.store().clone()  # separate connection: waits of other threads must not block it
        self._others = [r for r in range(launch.n_ranks()) if r != launch.rank()]
        self._seen = {r: Seen() for r in self._others}
        self._mine = Seen()
        self._n_beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._store.set(f"who/{launch.rank()}", f"{socket.gethostname()} {os.getpid()}")
        self._beat()
        launch.wait_for(*(f"{key}/{r}" for r in self._others for key in ("who", "beat")))
        names = (self._store.get(f"who/{r}").decode().split() for r in self._others)
        self._who = {r: (host, int(pid)) for r, (host, pid) in zip(self._others, names, strict=True)}

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Tell the others that this rank has finished."""
        self._over.set()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"beat/{launch.rank()}", "over 0" if kind is None else f"ended {self.wire.n_begun}")

    def culprit(self, seconds: float = GRACE_S - 0.5) -> str | None:
        """The message about the rank that made a collective fail, if one is found within `seconds`.

        Raises:
            OtherRank: the error has already been reported.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            launch.look()
            if (fault := self._fault(silent=2 * BEAT_S)) is not None:
                return fault
            time.sleep(BEAT_S / 10)
        return None

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._beat()
                if self._store.check([launch.FAULT]):
                    self._end()
                elif (fault := self._fault(silent=SILENT_S)) is not None:
                    if launch.tell(fault):
                        say(fault)
                    self._end()
            except RuntimeError:
                if not self._over.wait(GRACE_S):
                    say(f"torchrun's store no longer answers rank {launch.rank()}, which exits. {GO_ON}")
                    os._exit(CODE)

    def _end(self) -> None:
        if not self._over.wait(GRACE_S):
            os._exit(CODE)

    def _beat(self) -> None:
        self._n_beats += 1
        self._store.set(f"beat/{launch.rank()}", f"{self._n_beats} {self.wire.n_begun}")

    def _fault(self, silent: float) -> str | None:
        if not self._others:
            return None
        self._mine.hear(f"- {self.wire.n_begun}")
        beats = self._store.multi_get([f"beat/{r}" for r in self._others])
        now = time.monotonic()
        for r, beat in zip(self._others, beats, strict=True):
            seen, (host, pid) = self._seen[r], self._who[r]
            seen.hear(beat.decode())
            if seen.beat.startswith(("over", "ended")):
                continue
            name = f"rank {r} (process {pid} on {host})"
            if host == socket.gethostname() and not alive(pid):
                return f"{name} died, perhaps because it ran out of memory; the others exit. {GO_ON}"
            if now - seen.since > silent:
                return f"{name} has not responded for {silent:.0f} s; the others exit. {GO_ON}"
            if self._mine.n_begun > seen.n_begun and min(now - seen.moved, now - self._mine.moved) > self.patience:
                return (
                    f"{name} hangs: the others waited {self.patience:.0f} s for it (train.patience), and exit. {GO_ON}"
                )
        return None


GO_ON = "Continue from the last checkpoint with --resume, or let torchrun do so (--max-restarts)."


def say(sentence: str) -> None:
    """Print to stderr directly: the training thread may be blocked."""
    sys.stderr.write(f"sae: {sentence}\n")
    sys.stderr.flush()


def alive(pid: int) -> bool:
    """Whether a process on this machine is running or stopped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
