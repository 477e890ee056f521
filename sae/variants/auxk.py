"""AuxK: the auxiliary loss that revives dead features (Gao et al. 2406.04093, §A.2).

    loss += α ‖e − ê‖²        e = x − x̂ held constant, ê = what the k_aux strongest dead features of each row reconstruct
"""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from sae import losses
from sae.kernels import Revival
from sae.ranks import ALONE, Ranks
from sae.section import Section
from sae.units import Count


class AuxK(Section):
    """The auxiliary loss that revives dead features (Gao et al. 2406.04093, §A.2)."""

    coefficient: float = Field(default=1 / 32, ge=0)
    """Weight beside the reconstruction loss; 0 switches the term off."""
    k: Count | None = Field(default=None, gt=0)
    """Dead features that reconstruct each row's error; null means d_in / 2."""

    def revival(self, dead: Bool[Tensor, " d_sae"], d_in: int, room: int | None = None) -> Revival | None:
        """What the training pass is asked for; None while no feature is dead, or with the term off.

        With `room` (at least as many as are dead) no device is waited for, and where there is some none may be dead.
        """
        if self.coefficient == 0 or room == 0 or (room is None and not bool(torch.any(dead))):
            return None
        return Revival(dead, self.k or max(1, d_in // 2), room)

    def term(
        self, residual: Float[Tensor, "n_rows d_out"], aux_hat: Float[Tensor, "n_rows d_out"] | None,
        revival: Revival | None, weight: Float[Tensor, "n_rows d_out"] | None = None, ranks: Ranks = ALONE,
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss term by its coefficient, mean over rows; none, or 0, without a reconstruction by dead features.

        `weight` is what each entry's squared error counts by (`Progress.weight`).
        """
        if aux_hat is None or revival is None:
            return {}
        # where nobody has looked whether any is dead, the term is 0 if none is
        dead = revival.room is None or ranks.most(revival.dead.any())
        return {"auxk": self.coefficient * dead * losses.auxk(residual, aux_hat, weight)}
