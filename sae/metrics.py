"""Held-out metrics from sums over documents, with confidence intervals.

FVE = 1 − Σ‖t − t̂‖² / Σ‖t − mean‖² over rows, in raw space, with the mean of those same rows.

Documents are independent, rows of a document are not, so all intervals are jackknifed over documents, not over rows or
sequences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_DOCUMENTS = 10
"""Fewest documents for which an interval is given."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence bounds; None if there are too few documents."""

    value: float
    low: float | None = None
    high: float | None = None

    def named(self, name: str) -> dict[str, float | list[float] | None]:
        """`{name: value, name_interval: [low, high]}` for JSON; None if undefined (no variance, say)."""
        if not math.isfinite(self.value):
            return {name: None, f"{name}_interval": None}
        known = self.low is not None and self.high is not None and math.isfinite(self.high - self.low)
        return {name: self.value, f"{name}_interval": [self.low, self.high] if known else None}  # type: ignore[list-item]


def jackknife(
    statistic: Callable[[Float[np.ndarray, "n_draws n_sums"]], Float[np.ndarray, " n_draws"]],
    sums: Float[np.ndarray, "n_documents n_sums"], n_rows: Float[np.ndarray, " n_documents"],
) -> Interval:
    """A statistic of sums over documents with its 95 % jackknife interval.

    value ± t(0.975, df) · s, where s is the jackknife standard error (Efron & Tibshirani 1993, An Introduction to the
    Bootstrap, ch. 11) and df is one less than Kish's effective number of documents, (Σ n_rows)² / Σ n_rows², which is
    small if one document dominates. On 10, 30 and 100 documents of unequal length its coverage is about nominal;
    percentile and BCa bootstraps undercover with 10 to 30.

    Args:
        statistic: function of the summed columns, for a batch of draws.
        sums: each document's contribution to each sum.
        n_rows: rows of each document; empty documents are ignored.
    """
    value, pseudo = pseudo_values(statistic, sums[n_rows > 0])
    return spread_of(value, pseudo, n_rows[n_rows > 0])


def pseudo_values(
    statistic: Callable[[Float[np.ndarray, "n_draws n_sums"]], Float[np.ndarray, " n_draws"]],
    sums: Float[np.ndarray, "n_documents n_sums"],
) -> tuple[float, Float[np.ndarray, " n_documents"]]:
    """A statistic of sums over documents and its pseudo-values: n · all − (n − 1) · all without the document (Tukey).

    The standard error of their mean is the jackknife's. Differences of the pseudo-values of two statistics over the same
    documents give the jackknife of the difference.
    """
    total, n = sums.sum(0), len(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(total[None])[0])
        return value, n * value - (n - 1) * statistic(total - sums)


def spread_of(
    value: float, pseudo: Float[np.ndarray, " n_documents"], n_rows: Float[np.ndarray, " n_documents"]
) -> Interval:
    """A value with the interval from its pseudo-values: see `jackknife`."""
    n = len(pseudo)
    if n < MIN_DOCUMENTS:
        return Interval(value)
    half = standard_error(pseudo) * t_quantile(effective(n_rows) - 1)
    return Interval(value, value - half, value + half)


def standard_error(pseudo: Float[np.ndarray, " n_documents"]) -> float:
    """Standard error of the mean of pseudo-values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.std(pseudo, ddof=1)) / math.sqrt(len(pseudo))


def effective(n_rows: Float[np.ndarray, " n_documents"]) -> float:
    """Kish's effective number of documents."""
    return float(n_rows.sum() ** 2 / np.square(n_rows).sum())


def t_quantile(df: float) -> float:
    """Two-sided 95 % quantile of Student's t; df is clamped to at least 1.

    With t = √df · tan φ the density is proportional to cos(φ)^(df − 1).
    """
    df = max(df, 1.0)
    angle = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angle).clip(0) ** (df - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(0.95 * below[-1], below, angle))


def ratio(
    over: Float[np.ndarray, " n_documents"], under: Float[np.ndarray, " n_documents"],
    n_rows: Float[np.ndarray, " n_documents"],
) -> Interval:
    """Σ over / Σ under with its interval, from per-document sums."""
    return jackknife(lambda sums: sums[:, 0] / sums[:, 1], np.stack([over, under], axis=1), n_rows)


class FVE:
    """Fraction of variance explained, accumulated per document to get an interval."""

    def __init__(self, n_documents: int, shift: Float[Tensor, " d_out"]) -> None:
        """`shift`: any point near the data (the training mean); sums are taken about it to keep precision."""
        self.shift = shift.double()
        self.error = torch.zeros(n_documents, dtype=torch.float64)
        self.squares = torch.zeros(n_documents, dtype=torch.float64)
        self.total = torch.zeros(n_documents, len(shift), dtype=torch.float64)
        self.rows = torch.zeros(n_documents, dtype=torch.float64)

    def add(
        self, document: Int[Tensor, " n_rows"], target: Float[Tensor, "n_rows d_out"],
        x_hat: Float[Tensor, "n_rows d_out"],
    ) -> None:
        """Add rows, with the document index of each."""
        # move to the CPU first: not every device has fp64
        document, target, x_hat = document.cpu(), target.cpu().double(), x_hat.cpu().double()
        centred = target - self.shift
        self.error.index_add_(0, document, (target - x_hat).square().sum(1))
        self.squares.index_add_(0, document, centred.square().sum(1))
        self.total.index_add_(0, document, centred)
        self.rows.index_add_(0, document, torch.ones(len(document), dtype=torch.float64))

    def value(self) -> float:
        """FVE over everything added."""
        return self.interval().value

    def interval(self) -> Interval:
        """FVE over everything added, with its interval over documents."""
        return jackknife(fve_of, self.sums(), self.rows.numpy())

    def sums(self) -> Float[np.ndarray, "n_documents n_sums"]:
        """Per-document sums for `fve_of`."""
        return torch.cat([torch.stack([self.error, self.squares, self.rows], dim=1), self.total], dim=1).numpy()


def fve_of(sums: Float[np.ndarray, "n_draws n_sums"]) -> Float[np.ndarray, " n_draws"]:
    """FVE from columns of summed error, squares, rows and coordinates: see `FVE.sums`."""
    error, squares, n_rows, total = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    return 1 - error / (squares - np.square(total).sum(-1) / n_rows)


def recovered(
    clean: Float[np.ndarray, " n_documents"], spliced: Float[np.ndarray, " n_documents"],
    ablated: Float[np.ndarray, " n_documents"], n_rows: Float[np.ndarray, " n_documents"],
) -> Interval:
    """Cross-entropy loss recovered by the SAE, relative to ablation: (ablated − spliced) / (ablated − clean).

    Args:
        clean: nats summed over each document's predicted tokens; likewise `spliced` and `ablated`.
        spliced: with the SAE's reconstruction spliced in.
        ablated: with the activation ablated.
        n_rows: number of predicted tokens per document.
    """
    return ratio(ablated - spliced, ablated - clean, n_rows)
