"""AuxK: the auxiliary loss that revives dead features (Gao et al. 2406.04093, §A.2).

    loss += α ‖e − ê‖²        e = x − x̂ detached, ê = reconstruction from the k_aux strongest dead features of each row
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
    """Weight relative to the reconstruction loss; 0 switches the term off."""
    k: Count | None = Field(default=None, gt=0)
    """Number of dead features that reconstruct each row's error; null: d_in / 2."""

    def revival(self, dead: Bool[Tensor, " d_sae"], d_in: int, room: int | None = None) -> Revival | None:
        """The AuxK request for the forward pass; None if no feature is dead or the term is off.

        With `room` (an upper bound on the number of dead features) there is no device sync, and maybe no dead feature.
        """
        if self.coefficient == 0 or room == 0 or (room is None and not bool(torch.any(dead))):
            return None
        return Revival(dead, self.k or max(1, d_in // 2), room)

    def term(
        self, residual: Float[Tensor, "n_rows d_out"], aux_hat: Float[Tensor, "n_rows d_out"] | None,
        revival: Revival | None, weight: Float[Tensor, "n_rows d_out"] | None = None, ranks: Ranks = ALONE,
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss term, mean over rows; empty or 0 if there are no dead features.

        `weight`: weight of each entry's squared error (`Progress.weight`).
        """
        if aux_hat is None or revival is None:
            return {}
        # with `room`, the number of dead features is unknown on the host; the term is 0 if there are none
        dead = revival.room is None or ranks.most(revival.dead.any())
        return {"auxk": self.coefficient * dead * losses.auxk(residual, aux_hat, weight)}
