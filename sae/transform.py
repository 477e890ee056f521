"""The input transform of a hook: centre, scale, and optionally whiten and normalise each row.

    z = (x − mean) · scale                          mean squared norm d
    z = z A        A = V diag(λ ∨ floor)^−½         `whiten`: PCA whitening, Cov(z) = V diag(λ) Vᵀ on the control set
    z = z √d / ‖z‖                                  `unit_rows`

Donhauser et al. (2412.16247) whiten on control images and then scale rows to unit norm, so that the dictionary is not
spent on variation that the controls have too. Here the control set is the calibration rows, which also set mean and scale,
and rows are scaled to norm √d, their average norm without it. The paper does not treat low-variance axes; here variances
are clamped to at least `floor` times the mean over all axes.

Whitening is linear, so it folds into the weights if the encoder is linear (`SAE.folded`). `unit_rows` is not, and stays
part of the SAE.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae.errors import SaescopeError
from sae.section import Section
from sae.subspace import Subspace


class TransformConfig(Section):
    """Optional steps after centring and scaling. Reconstructions and FVE are still in the model's units."""

    whiten: bool = False
    """PCA whitening, fitted on the calibration rows: all axes get equal variance. For transcoders, of the input only."""
    floor: float = Field(default=1e-4, gt=0, le=1)
    """Clamp the variance of each axis to at least this fraction of the mean when whitening."""
    unit_rows: bool = False
    """Scale each row to norm √d, after whitening. Not for transcoders."""


class Transform(nn.Module):
    """The input transform of a hook. Fixed before training starts."""

    mean: Tensor
    scale: Tensor
    whiten: Tensor | None

    def __init__(
        self, mean: Float[Tensor, " d"], scale: Float[Tensor, ""], *, whiten: Float[Tensor, "d d"] | None = None,
        unit_rows: bool = False,
    ) -> None:
        """`whiten` is A in the module docstring: orthogonal columns, one per principal axis."""
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
        """A copy with its own memory."""
        return Transform(self.mean, self.scale, whiten=self.whiten, unit_rows=self.unit_rows)

    def normalise(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        """Map the model's units to normalised units."""
        z = self._linear(x)
        return z / _spread(z) if self.unit_rows else z

    def spread(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows 1"] | None:
        """The divisor by which `normalise` brings each raw row to norm √d; None without `unit_rows`."""
        return _spread(self._linear(x)) if self.unit_rows else None

    def _linear(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        # narrower dtypes are promoted to the mean's by the subtraction, in one pass
        x = x.to(self.mean.dtype) if x.dtype == torch.float64 else x
        z = (x - self.mean) * self.scale
        return z if self.whiten is None else z @ self.whiten

    def unwhitened(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Undo the whitening of rows or directions: back in the model's axes, still scaled."""
        if self.whiten is None:
            return z
        # A⁻¹ = diag(λ ∨ floor)^½ Vᵀ, and the squared norms of A's columns are 1 / (λ ∨ floor)
        return z / self.whiten.square().sum(0) @ self.whiten.t()

    def restore(self, z: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows d"]:
        """Map normalised units back to the model's; with `unit_rows`, for rows whose spread is 1."""
        return self.unwhitened(z) / self.scale + self.mean


def _spread(z: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n_rows 1"]:
    # a row at the mean has no direction and stays zero
    return z.norm(dim=1, keepdim=True).clamp_min(1e-12) / z.shape[1] ** 0.5


def whitening(rows: Float[Tensor, "n_rows d"], floor: float) -> Float[Tensor, "d d"]:
    """The whitening matrix A from centred and scaled rows; computed in fp64, returned in the rows' dtype.

    Raises:
        SaescopeError: too few rows for a covariance, or rows without variance.
    """
    n_rows, d = rows.shape
    if n_rows <= d:
        raise SaescopeError(
            f"sae.transform.whiten: {n_rows:,} calibration rows are too few for a {d:,} × {d:,} covariance; raise "
            f"data.n_calib to more than {d:,}, or set it to false."
        )
    found = Subspace.of(rows)
    variance = found.variance.clamp_min(floor * float(found.variance.mean()))
    return (found.axes.t() / variance.sqrt()).to(rows)
