"""The input transform of a hook: centred, scaled, and, where asked for, whitened and each row brought to one length.

    z = (x − mean) · scale                          mean squared norm d
    z = z A        A = V diag(λ ∨ floor)^−½         `whiten`: PCA whitening, Cov(z) = V diag(λ) Vᵀ on the control set
    z = z √d / ‖z‖                                  `unit_rows`

Donhauser et al. (2412.16247) whiten on control images and then scale rows to unit norm, so that what varies among the
controls anyhow does not fill the dictionary. Here the control set is the calibration rows, which fix mean and scale too,
and rows get the norm √d that they have on average without it. The paper says nothing of axes that hardly vary: their
variance is taken to be at least `floor` times the mean over all axes.

Whitening is linear, so that it folds into the weights of an SAE whose encoder is (`SAE.folded`); `unit_rows` is not, and
stays part of the SAE.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae.errors import SaescopeError
from sae.section import Section
from sae.subspace import Subspace


class TransformConfig(Section):
    """What is done to rows beside centring and scaling; reconstructions and FVE are in the model's units all the same."""

    whiten: bool = False
    """PCA whitening, fitted on the calibration rows: all axes get the same variance. Of a transcoder, whose target is not
    its input, only the input."""
    floor: float = Field(default=1e-4, gt=0, le=1)
    """Axes whose variance is below this share of the mean are whitened as if they had it."""
    unit_rows: bool = False
    """Scale each row to norm √d after that. Not for transcoders."""


class Transform(nn.Module):
    """The input transform of a hook. Frozen before training begins."""

    mean: Tensor
    scale: Tensor
    whiten: Tensor | None

    def __init__(
        self, mean: Float[Tensor, " d"], scale: Float[Tensor, ""], *, whiten: Float[Tensor, "d d"] | None = None,
        unit_rows: bool = False,
    ) -> None:
        """`whiten` is A of this file's head: its columns are orthogonal, one for each principal axis."""
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("whiten", None if whiten is None else whiten.clone())
        self.unit_rows = unit_rows

    @classmethod
    def identity(cls, d: int) -> "Transform":
        """No centring, scale 1."""
        return cls(torch.zeros(d), torch.ones(()))

    def twin(self) -> "Transform":
        """The same transform in memory of its own."""
        return Transform(self.mean, self.scale, whiten=self.whiten, unit_rows=self.unit_rows)

    def normalise(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        """From the model's units to those of training."""
        z = self._linear(x)
        return z / _spread(z) if self.unit_rows else z

    def spread(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows 1"] | None:
        """By what `normalise` divides each of these raw rows to give it norm √d; None where it does not."""
        return _spread(self._linear(x)) if self.unit_rows else None

    def _linear(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        # of narrower numbers the difference is as wide as the mean, in one pass
        x = x.to(self.mean.dtype) if x.dtype == torch.float64 else x
        z = (x - self.mean) * self.scale
        return z if self.whiten is None else z @ self.whiten

    def unwhitened(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows or directions of the units of training without the whitening: in the axes of the model, still scaled."""
        if self.whiten is None:
            return z
        # A⁻¹ = diag(λ ∨ floor)^½ Vᵀ: columns of A are as long as the first factor's entries are short
        return z / self.whiten.square().sum(0) @ self.whiten.t()

    def restore(self, z: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        """From the units of training to the model's; with `unit_rows`, of rows whose spread is 1."""
        return self.unwhitened(z) / self.scale + self.mean


def _spread(z: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows 1"]:
    # a row at the mean has no direction, and stays where it is
    return z.norm(dim=1, keepdim=True).clamp_min(1e-12) / z.shape[1] ** 0.5


def whitening(rows: Float[Tensor, "n_rows d"], floor: float) -> Float[Tensor, "d d"]:
    """A of this file's head, from centred and scaled rows of the control set; in fp64, returned as the rows are.

    Raises:
        SaescopeError: too few rows for a covariance, or rows that do not vary.
    """
    n_rows, d = rows.shape
    if n_rows <= d:
        raise SaescopeError(
            f"sae.transform.whiten: {n_rows:,} calibration rows do not fix a covariance of {d:,} × {d:,}; raise "
            f"data.n_calib until there are more than {d:,}, or set it to false."
        )
    found = Subspace.of(rows)
    variance = found.variance.clamp_min(floor * float(found.variance.mean()))
    return (found.axes.t() / variance.sqrt()).to(rows)
