"""Work that any number of processes do together, on one machine or many, without a coordinator.

The work is cut into numbered pieces, and what a piece writes is a pure function of its number: so to do one twice does no
harm, and nothing below has to be certain. A process that begins a piece leaves a claim, a small file that says which
process it is, so that others begin with other pieces:

    FOLDER/.claims/00012    machine, process, when it began

A claim counts for nothing once its piece is done, or where its process was one of this machine and has gone. Whoever has
nothing else to do takes over a claim that it has seen unchanged for `PATIENCE` seconds, and for three times as long as its
own longest piece took: of a process that died elsewhere, that hangs, or that is only slow. No clocks are compared.

Ranks under torchrun and jobs that know nothing of each other are one and the same here.
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
"""Seconds for which a claim is believed by a process that has nothing else to do."""
POLL = 0.5
"""Seconds between two looks at what others have done."""


class SharedWork:
    """The pieces 0 to n − 1 of one work, some of them done.

    While it is open as a context, claims of this process stand; they are withdrawn when it is left, whatever for. When
    `pieces` has come to its end, it must only be left when the outcome of all of them is there.
    """

    def __init__(
        self, store: Store, folder: str, n: int, *, done: Callable[[], set[int]], is_done: Callable[[int], bool],
        say: Callable[[str], None] = lambda _: None, found: Callable[[set[int]], None] = lambda _: None,
    ) -> None:
        """Nothing is claimed yet.

        Args:
            store: that all processes see.
            folder: of it, for the claims.
            n: how many pieces.
            done: all pieces whose outcome is there, whoever made it.
            is_done: whether one piece's is.
            say: told what is waited for.
            found: told of pieces that others have done since this work was opened, once each.
        """
        self.store, self.folder, self.n, self.say = store, f"{folder}/{CLAIMS}".lstrip("/"), n, say
        self._look, self._is_done, self._found = done, is_done, found
        self.begun_with: set[int] = done()
        """The pieces that were done before."""
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
            for name in self.store.names(self.folder):  # of processes that have gone, too: all is done
                self.store.remove(f"{self.folder}/{name}")
            return
        # what ended the work counts more than a claim that stays
        with suppress(Exception):
            for i in list(self._standing):
                self._withdraw(i)

    def pieces(self) -> Iterator[int]:
        """The pieces that this process is to do, one after the other; ends when all others are done too."""
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
                    self.say(f"waiting for other processes, which are at {len(passed)} of {self.n} pieces")
                time.sleep(POLL)
            self._left, idle = passed, nothing_taken

    def _look_again(self) -> None:
        """Look what has been done meanwhile, now and then: to look costs little beside what is looked for."""
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
        """Claim a piece; False if it is done, or another process is believed to be at it."""
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
        if self._is_done(i):  # by the process that has just withdrawn its claim
            self._withdraw(i)
            return False
        self._mine.add(i)
        return True


def claimants(store: Store, folder: str) -> list[str]:
    """The processes that are at a work, as far as is known: those of this machine that have gone are left out."""
    folder = f"{folder}/{CLAIMS}".lstrip("/")
    claims = [store.read(f"{folder}/{name}") for name in sorted(store.names(folder)) if name.isdecimal()]
    found = dict.fromkeys(_described(claim) for claim in claims if claim is not None and not has_gone(claim))
    return list(found)


def _described(claim: bytes) -> str:
    process = _read(claim)
    return f"process {process.get('pid', 'unknown')} on {process.get('name', 'an unknown machine')}"


def this_process() -> dict[str, Any]:
    """What a claim says of the process that makes it."""
    pid = os.getpid()
    return {"machine": _machine(), "name": platform.node(), "pid": pid, "began": psutil.Process(pid).create_time()}


def has_gone(claim: bytes) -> bool:
    """Whether a claim is of a process of this machine that is no longer there; False where that cannot be known."""
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
    """What two processes share that see each other's numbers: one start of one kernel, and one name space of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {psutil.boot_time():.0f}"
