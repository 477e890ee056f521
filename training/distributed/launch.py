"""What torchrun tells a process, and the one sentence that several of them say of a fault.

Ranks talk through torchrun's own key-value store before, beside and after their collectives: so a fault is told even where
no collective works. The first rank that tells of one is the one that speaks; the others end without a word.
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
    """Another rank is at fault, and has told so, or will be told of."""


def is_launched() -> bool:
    """Whether torchrun began this process."""
    return "TORCHELASTIC_RESTART_COUNT" in os.environ and "RANK" in os.environ


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_launched() else 0


def n_ranks() -> int:
    """Processes in all."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def n_restarts() -> int:
    """How often torchrun has begun them anew (--max-restarts)."""
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"]) if is_launched() else 0


@functools.cache
def _launcher() -> Any:
    import torch.distributed as dist

    found, _, _ = next(dist.rendezvous("env://"))
    return found


_trainings = 0


def next_training() -> None:
    """Another training of the same processes begins, whose keys are its own. All ranks call it."""
    global _trainings
    _trainings += 1


def store() -> Any:
    """torchrun's key-value store, under a prefix of this attempt and training."""
    import torch.distributed as dist

    return dist.PrefixStore(f"saescope/{n_restarts()}/{_trainings}", _launcher())


def tell(sentence: str) -> bool:
    """Tell the other ranks of a fault; False if one has been told of already, or nobody can be told."""
    # two threads of a rank may find the same fault
    mine = f"{rank()}/{threading.get_ident()} {sentence}"
    try:
        found: bytes = store().compare_set(FAULT, "", mine)
    except RuntimeError:
        return rank() == 0
    return found.decode() == mine


def wait_for(*keys: str) -> None:
    """Until other ranks have set these keys.

    Raises:
        OtherRank: a fault was told of meanwhile.
    """
    while not store().check(list(keys)):
        look()
        time.sleep(_POLL_S)


def look() -> None:
    """Whether another rank is at fault.

    Raises:
        OtherRank: it is.
    """
    if store().check([FAULT]):
        raise OtherRank(store().get(FAULT).decode().partition(" ")[2])


@contextlib.contextmanager
def speaking_once() -> Iterator[None]:
    """What a user can mend is raised on the rank that tells of it first; the others leave with code 2, silently."""
    if not is_launched():
        yield
        return
    try:
        yield
    except SaescopeError as error:
        if isinstance(error, OtherRank) or not tell(str(error)):
            raise SystemExit(2) from None
        raise
    except Exception as error:  # a defect keeps its traceback, on its own rank
        tell(f"rank {rank()} failed: {type(error).__name__}: {error}")
        raise
