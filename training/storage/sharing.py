"""Share work between any number of processes, on one machine or many, without a coordinator.

The work is split into numbered pieces, and the output of a piece is a pure function of its number. So doing a piece twice
is harmless, and the coordination below may be best-effort. A process that starts a piece writes a claim, a small file that
identifies the process, so that other processes start with other pieces:

    FOLDER/.claims/00012    machine, process, start time

A claim is ignored once its piece is done, or if its process ran on this machine and has exited. An idle process takes over
a claim that it has seen unchanged for `PATIENCE` seconds and for three times its own longest piece: the claiming process
may have died on another machine, hang, or just be slow. Clocks of different machines are not compared.

Ranks under torchrun and independent jobs are treated alike.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from sae.io.files import json_bytes
from training.storage.store import Store

CLAIMS = ".claims"
PATIENCE = 60.0
"""Seconds for which an idle process respects a claim."""
POLL = 0.5
"""Seconds between two checks of what others have done."""


class SharedWork:
    """Pieces 0 to n − 1 of a job, some of which may be done.

    Use as a context manager: on exit, for whatever reason, the claims of this process are withdrawn. Once `pieces` is
    exhausted, leave the context only when the output of all pieces has been written.
    """

    def __init__(
        self, store: Store, folder: str, n: int, *, done: Callable[[], set[int]], is_done: Callable[[int], bool],
        say: Callable[[str], None] = lambda _: None, found: Callable[[set[int]], None] = lambda _: None,
    ) -> None:
        """Nothing is claimed yet.

        Args:
            store: a store that all processes see.
            folder: folder in the store for the claims.
            n: number of pieces.
            done: returns all finished pieces, whichever process did them.
            is_done: whether one piece is finished.
            say: prints a message while waiting.
            found: called with pieces that other processes have finished since the start, once for each.
        """
        self.store, self.folder, self.n, self.say = store, f"{folder}/{CLAIMS}".lstrip("/"), n, say
        self._look, self._is_done, self._found = done, is_done, found
        self.begun_with: set[int] = done()
        """Pieces that were done at the start."""
        self._done = set(self.begun_with)
        self._left = list(range(n))
        self._next_look = 0.0
        self._mine: set[int] = set()
        self._standing: set[int] = set()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._longest = 0.0

    def __enter__(self) -> "SharedWork":  # noqa: PYI034  (beartype knows no Self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and not self._left:
            for name in self.store.names(self.folder):  # also those of processes that have exited: all is done
                self.store.remove(f"{self.folder}/{name}")
            return
        # don't hide the original error behind a failure to remove claims
        with suppress(Exception):
            for i in list(self._standing):
                self._withdraw(i)

    def pieces(self) -> Iterator[int]:
        """Yield the pieces that this process should do; ends once all pieces are done, by whichever process."""
        self._left = [i for i in range(self.n) if i not in self._done]
        idle = False
        while self._left:
            passed = []
            for i in self._left:
                self._look_again()
                if i in self._done:
                    continue
                if self._take(i, idle=idle):
                    began = time.monotonic()
                    yield i
                    self._longest = max(self._longest, time.monotonic() - began)
                else:
                    passed.append(i)
            nothing_taken = len(passed) == len(self._left)
            if nothing_taken:
                if not idle:
                    self.say(f"waiting for other processes, which are working on {len(passed)} of {self.n} pieces")
                time.sleep(POLL)
            self._left, idle = passed, nothing_taken

    def _look_again(self) -> None:
        """Check what other processes have done, rarely enough that checking takes at most 5 % of the time."""
        began = time.monotonic()
        if began < self._next_look:
            return
        now = self._look()
        for i in now & self._standing:
            self._withdraw(i)
        if new := now - self._done - self._mine:
            self._found(new)
        self._done |= now
        self._next_look = time.monotonic() + max(POLL, 20 * (time.monotonic() - began))

    def _name(self, i: int) -> str:
        return f"{self.folder}/{i:05d}"

    def _withdraw(self, i: int) -> None:
        self._standing.discard(i)
        self.store.remove(self._name(i))

    def _take(self, i: int, *, idle: bool) -> bool:
        """Claim a piece; False if it is done, or another process seems to be working on it."""
        mine = json_bytes(this_process())
        if not self.store.create(self._name(i), mine):
            claim = self.store.read(self._name(i))
            if claim is None:  # withdrawn just now
                return False
            if self._seen.get(i, (b"", 0.0))[0] != claim:
                self._seen[i] = (claim, time.monotonic())
            waited = time.monotonic() - self._seen[i][1]
            if not has_gone(claim) and not (idle and waited > max(PATIENCE, 3 * self._longest)):
                return False
            self.store.write(self._name(i), [mine])
        self._standing.add(i)
        if self._is_done(i):  # by a process that has just withdrawn its claim
            self._withdraw(i)
            return False
        self._mine.add(i)
        return True


def claimants(store: Store, folder: str) -> list[str]:
    """The processes with claims, except those of this machine that have exited."""
    folder = f"{folder}/{CLAIMS}".lstrip("/")
    claims = [store.read(f"{folder}/{name}") for name in sorted(store.names(folder)) if name.isdecimal()]
    found = dict.fromkeys(_described(claim) for claim in claims if claim is not None and not has_gone(claim))
    return list(found)


def _described(claim: bytes) -> str:
    process = _read(claim)
    return f"process {process.get('pid', 'unknown')} on {process.get('name', 'an unknown machine')}"


def this_process() -> dict[str, Any]:
    """The content of a claim: identifies this process."""
    pid = os.getpid()
    return {"machine": _machine(), "name": platform.node(), "pid": pid, "began": psutil.Process(pid).create_time()}


def has_gone(claim: bytes) -> bool:
    """Whether a claim's process ran on this machine and has exited; False if that cannot be determined."""
    process = _read(claim)
    if process.get("machine") != _machine():
        return False
    try:
        other = psutil.Process(int(process["pid"]))
        return other.create_time() != process["began"] or other.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def _read(claim: bytes) -> dict[str, Any]:
    try:
        found = json.loads(claim)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@cache
def _machine() -> str:
    """Identify boot and PID namespace: two processes with the same value see each other's PIDs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {psutil.boot_time():.0f}"
