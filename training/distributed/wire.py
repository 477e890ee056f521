"""Collectives between ranks, with counts of the bytes sent and the calls started.

Bytes assume a ring over n ranks, as NCCL and gloo use for large tensors: an all-reduce of B bytes costs each rank
2 B (n − 1) / n, an all-gather of B bytes per rank B (n − 1), and a broadcast of B bytes B (n − 1) / n on average.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A process group, and this rank's index in it."""

    ranks: dist.ProcessGroup | None
    """None: only this rank."""
    n: int
    index: int


class Wire:
    """The collectives of one process."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        """Bytes sent, by purpose."""
        self.n_begun = 0
        """Collectives that this rank has started."""
        self.n_ended = 0
        """Collectives that have returned; on a device the last one may still be running."""

    def sum_(self, x: Tensor, group: Group, what: str) -> Tensor:
        """Σ over the group, in place. `x` is contiguous."""
        return self._reduce(x, group, dist.ReduceOp.SUM, what)

    def max_(self, x: Tensor, group: Group, what: str) -> Tensor:
        """The greatest of the group, in place."""
        return self._reduce(x, group, dist.ReduceOp.MAX, what)

    def min_(self, x: Tensor, group: Group, what: str) -> Tensor:
        """The least of the group, in place."""
        return self._reduce(x, group, dist.ReduceOp.MIN, what)

    def gathered(self, x: Tensor, group: Group, what: str) -> Tensor:
        """`[n, ...]`: the tensors of all ranks of the group, which are of one shape."""
        if group.n == 1:
            return x[None]
        out = x.new_empty(group.n, *x.shape)
        self._call(dist.all_gather, list(out), x.contiguous(), group=group.ranks)
        self.sent[what] += x.nbytes * (group.n - 1)
        return out

    def from_first_(self, x: Tensor, group: Group, what: str) -> Tensor:
        """Broadcast from the first rank of the group, in place. `x` is contiguous."""
        if group.n > 1:
            self._call(dist.broadcast, x, group=group.ranks, group_src=0)
            self.sent[what] += x.nbytes * (group.n - 1) // group.n
        return x

    def _reduce(self, x: Tensor, group: Group, op: Any, what: str) -> Tensor:
        if group.n > 1:
            self._call(dist.all_reduce, x, op=op, group=group.ranks)
            self.sent[what] += 2 * x.nbytes * (group.n - 1) // group.n
        return x

    def _call(self, collective: Any, *args: Any, **kwargs: Any) -> None:
        self.n_begun += 1
        with torch.no_grad():
            collective(*args, **kwargs)
        self.n_ended += 1
