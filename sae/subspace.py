"""Principal axes of activations (PCA), and how many of them matter.

Rows are centred on their mean. The axes are the right singular vectors of the centred rows, computed as eigenvectors of
their [d, d] covariance in fp64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sae.errors import SaescopeError


@dataclass(frozen=True)
class Subspace:
    """Principal axes, by descending variance."""

    axes: Float64[Tensor, "d d"]
    """One unit-norm axis per row."""
    variance: Float64[Tensor, " d"]
    """Variance along each axis, not negative. Their sum is the mean squared distance of the rows from their mean."""
    n_rows: int
    """Rows it was computed from: n rows span at most n − 1 dimensions."""

    @classmethod
    def of(cls, rows: Float[Tensor, "n_rows d"]) -> "Subspace":
        """Compute the principal axes of some rows.

        Raises:
            SaescopeError: the rows are all equal or contain NaN or infinite values.
        """
        centred = rows.detach().cpu().double()
        centred = centred - centred.mean(0)
        total = float(centred.square().sum())
        if not 0 < total < float("inf"):
            what = "are all equal" if total == 0 else "contain NaN or infinite values"
            raise SaescopeError(
                f"the {len(rows)} calibration rows {what}, so they have no principal axes; check the activations of this "
                "hook, or use init.directions=random."
            )
        variance, axes = torch.linalg.eigh(centred.t() @ centred / len(centred))
        return cls(axes.t().flip(0).contiguous(), variance.flip(0).clamp_min(0), len(rows))

    def n_for(self, share: float) -> int:
        """Number of axes that explain this share (0 to 1) of the variance."""
        held = self.variance.cumsum(0) / self.variance.sum()
        return int((held < share - 1e-12).sum()) + 1

    def effective_rank(self) -> float:
        """exp of the entropy of the singular values' shares (Roy & Vetterli, EUSIPCO 2007): d if all are equal."""
        share = self.variance.sqrt() / self.variance.sqrt().sum()
        return float(torch.special.entr(share).sum().exp())

    def participation_ratio(self) -> float:
        """(Σ variance)² / Σ variance², dominated by the largest axes."""
        return float(self.variance.sum().square() / self.variance.square().sum())
