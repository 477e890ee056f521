"""How features are sharded over ranks: in rounds, so that every prefix of the features is sharded too.

A round is `gcd(d_sae, 960)` consecutive features, of which rank i of n takes the i-th n-th. View the features as an array
[n_rounds, round]: the shards are slices of its second axis. So a checkpoint can be read with another number of ranks.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

ROUND = 960
"""Largest round: 2⁶ · 3 · 5, divisible by many numbers of ranks."""


def round_of(d_sae: int) -> int:
    """Features per round; a multiple of the number of ranks that shard the features."""
    return math.gcd(d_sae, ROUND)


@dataclass(frozen=True)
class Part:
    """The shard of `d_sae` features that rank `index` of `n` holds."""

    d_sae: int
    index: int = 0
    n: int = 1

    @property
    def per_round(self) -> int:
        """Features this rank holds of each round."""
        return round_of(self.d_sae) // self.n

    @property
    def n_features(self) -> int:
        """Features this rank holds."""
        return self.d_sae // self.n

    def features(self) -> Int64[Tensor, " n_features"]:
        """Ids of this rank's features, ascending."""
        rounds = torch.arange(self.d_sae).view(-1, self.n, self.per_round)
        return rounds[:, self.index].reshape(-1)

    def features_of(self, start: int, stop: int) -> Int64[Tensor, " n"]:
        """Ids of this rank's features in [start, stop)."""
        mine = self.features()
        return mine[self.n_below(start) : self.n_below(stop)]

    def n_below(self, end: int) -> int:
        """How many of the first `end` features this rank holds; they come first among its own."""
        rounds, rest = divmod(end, round_of(self.d_sae))
        return rounds * self.per_round + min(max(0, rest - self.index * self.per_round), self.per_round)
