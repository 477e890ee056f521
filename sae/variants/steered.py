"""The part of a config that says how sparse a variant is whose sparsity is a penalty of the loss."""

from pydantic import model_validator
from torch import Tensor

from sae.base import Progress, SAEConfig
from sae.controller import Sparsity
from sae.units import Duration


class SteeredConfig(SAEConfig):
    """What the variants have in common whose sparsity is a penalty of the loss."""

    sparsity: Sparsity = Sparsity(target_l0=32)
    """The penalty's coefficient λ, or the L0 it should reach. λ weighs the penalty beside the squared error, both in
    normalised units, where a row's mean squared norm is d_out."""
    warmup: Duration = Duration(5, "%")
    """A penalty that no controller steers rises linearly from 0 over this stretch, so that features are not killed before
    they mean anything."""

    @model_validator(mode="after")
    def _target_fits(self) -> "SteeredConfig":
        target = self.sparsity.target_l0
        if target is not None and target > self.d_sae:
            raise ValueError(
                f"sparsity.target_l0 = {target:g} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features"
            )
        return self

    def share_at(self, progress: Progress) -> float:
        """How much of λ is in force: all of it where a controller steers it."""
        return progress.through(self.warmup) if self.sparsity.target_l0 is None else 1.0

    def coefficient_at(self, progress: Progress) -> float | Tensor:
        """λ in force at this point of the training."""
        return progress.coefficient * self.share_at(progress)
