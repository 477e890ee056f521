"""Which features a rank holds where several share them: they are dealt out in rounds, so that every prefix is shared too.

A round is `gcd(d_sae, 960)` features in a row, of which rank i of n takes the i-th n-th: that is an array [n_rounds, round]
cut along its second axis, whatever n, so that what one number of ranks has saved another can read.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

ROUND = 960
"""Most features of a round: 2⁶ · 3 · 5, which many numbers of ranks divide."""


def round_of(d_sae: int) -> int:
    """Features of a round; the number of ranks that share features divides it."""
    return math.gcd(d_sae, ROUND)


@dataclass(frozen=True)
class Part:
    """The part that rank `index` of `n` holds of `d_sae` features."""

    d_sae: int
    index: int = 0
    n: int = 1

    @property
    def per_round(self) -> int:
        """Its features of each round."""
        return round_of(self.d_sae) // self.n

    @property
    def n_features(self) -> int:
        """How many it holds."""
        return self.d_sae // self.n

    def features(self) -> Int64[Tensor, " n_features"]:
        """Their numbers, ascending."""
        rounds = torch.arange(self.d_sae).view(-1, self.n, self.per_round)
        return rounds[:, self.index].reshape(-1)

    def features_of(self, start: int, stop: int) -> Int64[Tensor, " n"]:
        """Those from `start` to before `stop`."""
        mine = self.features()
        return mine[self.n_below(start) : self.n_below(stop)]

    def n_below(self, end: int) -> int:
        """How many of the first `end` features it holds; they are the first that it holds."""
        rounds, rest = divmod(end, round_of(self.d_sae))
        return rounds * self.per_round + min(max(0, rest - self.index * self.per_round), self.per_round)
