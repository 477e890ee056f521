"""Several ranks on this machine as forked children: real processes and gloo, without the time that imports take."""

import contextlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.training.distributed.configs import rows
from tests.training.distributed.launched import free_port


class Ended(NamedTuple):
    """How a rank ended."""

    code: int
    """Its exit code; below 0 the signal that killed it."""
    result: Any
    """What its function gave back."""
    said: str
    """On stderr."""
    seconds: float
    """After the beginning."""


def on_ranks(n: int, work: Callable[[], Any], folder: Path, *, restart: int = 0) -> list[Ended]:
    """Call a function on n ranks, as torchrun would have begun them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows()  # before there are several to write them
    port, began = free_port(), time.monotonic()
    sys.stderr.flush()
    children = []
    for rank in range(n):
        child = os.fork()
        if not child:
            _child(rank, n, port, restart, work, folder)
        children.append(child)
    ends: dict[int, tuple[int, float]] = {}
    while len(ends) < n:
        pid, status = os.wait()
        ends[pid] = os.waitstatus_to_exitcode(status), time.monotonic() - began
    out = []
    for rank, child in enumerate(children):
        result = folder / f"{rank}.result"
        found = pickle.loads(result.read_bytes()) if result.exists() else None
        out.append(Ended(ends[child][0], found, (folder / f"{rank}.said").read_text(), ends[child][1]))
    return out


def results(n: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """What a function gives back on each of n ranks, none of which may fail."""
    ended = on_ranks(n, work, folder)
    assert all(e.code == 0 for e in ended), "\n".join(e.said for e in ended)
    return [e.result for e in ended]


def _child(rank: int, n: int, port: int, restart: int, work: Callable[[], Any], folder: Path) -> None:
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restart),
        }
        with (folder / f"{rank}.said").open("w", buffering=1) as said, contextlib.redirect_stderr(said):
            code = _run(work, folder / f"{rank}.result")
    finally:
        os._exit(code)


def _run(work: Callable[[], Any], result: Path) -> int:
    try:
        result.write_bytes(pickle.dumps(work()))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
