"""The process's place in a torchrun launch, and reporting an error only once for all ranks.

Ranks communicate through torchrun's key-value store besides their collectives, so an error is reported even if no
collective works. The first rank to report an error prints it; the others exit silently.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from sae.errors import SaescopeError

FAULT = "fault"
_POLL_S = 0.05


class OtherRank(SaescopeError):
    """Another rank failed, and the error has been or will be reported."""


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RESTART_COUNT" in os.environ and "RANK" in os.environ


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_launched() else 0


def n_ranks() -> int:
    """Total number of processes."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def n_restarts() -> int:
    """How often torchrun has restarted the ranks (--max-restarts)."""
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"]) if is_launched() else 0


@functools.cache
def _launcher() -> Any:
    import torch.distributed as dist

    found, _, _ = next(dist.rendezvous("env://"))
    return found


_trainings = 0


def next_training() -> None:
    """Start another training with the same processes, under separate keys. Called by all ranks."""
    global _trainings
    _trainings += 1


def store() -> Any:
    """torchrun's key-value store, under a prefix of this attempt and training."""
    import torch.distributed as dist

    return dist.PrefixStore(f"saescope/{n_restarts()}/{_trainings}", _launcher())


def tell(sentence: str) -> bool:
    """Report an error to the other ranks; False if one was reported before, or the store is unreachable (except rank 0)."""
    # two threads of a rank may find the same error
    mine = f"{rank()}/{threading.get_ident()} {sentence}"
    try:
        found: bytes = store().compare_set(FAULT, "", mine)
    except RuntimeError:
        return rank() == 0
    return found.decode() == mine


def wait_for(*keys: str) -> None:
    """Wait until other ranks have set these keys.

    Raises:
        OtherRank: another rank reported an error meanwhile.
    """
    while not store().check(list(keys)):
        look()
        time.sleep(_POLL_S)


def look() -> None:
    """Check for errors of other ranks.

    Raises:
        OtherRank: another rank reported an error.
    """
    if store().check([FAULT]):
        raise OtherRank(store().get(FAULT).decode().partition(" ")[2])


@contextlib.contextmanager
def speaking_once() -> Iterator[None]:
    """Context that raises a SaescopeError only on the rank that reports it first; the others exit silently with code 2."""
    if not is_launched():
        yield
        return
    try:
        yield
    except SaescopeError as error:
        if isinstance(error, OtherRank) or not tell(str(error)):
            raise SystemExit(2) from None
        raise
    except Exception as error:  # a bug keeps its traceback, on its own rank
        tell(f"rank {rank()} failed: {type(error).__name__}: {error}")
        raise
