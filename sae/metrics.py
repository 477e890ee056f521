"""Held-out metrics as sums that can be gathered batch by batch, and their intervals.

FVE = 1 − Σ‖t − t̂‖² / Σ‖t − mean‖² over rows, in raw space, with the mean of those same rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float | list[float] | None]:
        """`{name: value, name_interval: [low, high]}` for JSON; None where the figure is undefined (no variance, say)."""
        finite = all(map(math.isfinite, (self.value, self.low, self.high)))
        return {name: self.value if finite else None, f"{name}_interval": [self.low, self.high] if finite else None}


def bootstrap(
    statistic: Callable[[Float[np.ndarray, " n_seqs"]], float], n_seqs: int, *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """A statistic of weighted sequences with its 95 % percentile interval.

    Sequences are resampled, not rows: rows of one sequence are not independent. `statistic` takes how often each
    sequence counts.
    """
    draws = np.random.default_rng(seed).multinomial(n_seqs, np.full(n_seqs, 1 / n_seqs), size=n_resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [statistic(weights.astype(np.float64)) for weights in draws]
        low, high = np.percentile(values, [2.5, 97.5])
        return Interval(statistic(np.ones(n_seqs)), float(low), float(high))


class FVE:
    """Fraction of variance explained, gathered per sequence so that it has an interval."""

    def __init__(self, n_seqs: int, shift: Float[Tensor, " d_out"]) -> None:
        """`shift` is any point near the data (its training mean): sums about it lose no precision."""
        self.shift = shift.double()
        self.error = torch.zeros(n_seqs, dtype=torch.float64)
        self.squares = torch.zeros(n_seqs, dtype=torch.float64)
        self.total = torch.zeros(n_seqs, len(shift), dtype=torch.float64)
        self.rows = torch.zeros(n_seqs, dtype=torch.float64)

    def add(
        self, seq: Int[Tensor, " n_rows"], target: Float[Tensor, "n_rows d_out"], x_hat: Float[Tensor, "n_rows d_out"]
    ) -> None:
        """Rows with the index of their sequence."""
        # to the CPU first: not every device has fp64
        seq, target, x_hat = seq.cpu(), target.cpu().double(), x_hat.cpu().double()
        centred = target - self.shift
        self.error.index_add_(0, seq, (target - x_hat).square().sum(1))
        self.squares.index_add_(0, seq, centred.square().sum(1))
        self.total.index_add_(0, seq, centred)
        self.rows.index_add_(0, seq, torch.ones(len(seq), dtype=torch.float64))

    def value(self) -> float:
        """FVE over everything added."""
        n, total = self.rows.sum(), self.total.sum(0)
        return float(1 - self.error.sum() / (self.squares.sum() - total @ total / n))

    def interval(self) -> Interval:
        """FVE over everything added, with its interval over sequences."""
        error, squares, total, rows = (t.numpy() for t in (self.error, self.squares, self.total, self.rows))

        def fve(weights: Float[np.ndarray, " n_seqs"]) -> float:
            n = weights @ rows
            mean = weights @ total / n
            return float(1 - (weights @ error) / (weights @ squares - n * (mean @ mean)))

        return bootstrap(fve, len(rows))


def recovered(
    clean: Float[np.ndarray, " n_seqs"], spliced: Float[np.ndarray, " n_seqs"], ablated: Float[np.ndarray, " n_seqs"]
) -> Interval:
    """Share of the cross-entropy lost to an ablation that the SAE keeps: (ablated − spliced) / (ablated − clean)."""
    return bootstrap(lambda w: float((w @ ablated - w @ spliced) / (w @ ablated - w @ clean)), len(clean))
