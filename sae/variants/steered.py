"""Config of variants whose sparsity comes from a penalty in the loss."""

from pydantic import model_validator
from torch import Tensor

from sae.base import Progress, SAEConfig
from sae.controller import Sparsity
from sae.units import Duration


class SteeredConfig(SAEConfig):
    """Config fields of variants with a sparsity penalty."""

    sparsity: Sparsity = Sparsity(target_l0=32)
    """The penalty's coefficient λ, or a target L0. λ weighs the penalty relative to the squared error, both in normalised
    units, where a row's mean squared norm is d_out."""
    warmup: Duration = Duration(5, "%")
    """Without a controller, the penalty is warmed up linearly from 0 over this duration, so that it does not kill features
    before they have learnt anything."""

    @model_validator(mode="after")
    def _target_fits(self) -> "SteeredConfig":
        target = self.sparsity.target_l0
        if target is not None and target > self.d_sae:
            raise ValueError(
                f"sparsity.target_l0 = {target:g} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features"
            )
        return self

    def share_at(self, progress: Progress) -> float:
        """Warm-up factor of λ, 0 to 1; 1 with a controller."""
        return progress.through(self.warmup) if self.sparsity.target_l0 is None else 1.0

    def coefficient_at(self, progress: Progress) -> float | Tensor:
        """λ at this point in training."""
        return progress.coefficient * self.share_at(progress)
