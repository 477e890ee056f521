"""Gated: one path decides which features are active, another how much, with shared directions (2404.16014).

    π = (x − b_dec) W_enc + b_enc                     gate = H(π)
    mag = ReLU((x − b_dec) W_enc exp(r_mag) + b_mag)  acts = gate · mag        x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + λ Σ_f ReLU(π_f) + ‖x − (ReLU(π) sg(W_dec) + sg(b_dec))‖²

sg holds the decoder constant: the auxiliary third term trains the gate, which the step H hides from the first, and must
not train the decoder, or the shrinkage that the penalty causes would come back (their §3.2). b_dec inside π is live.
W_enc and b_enc are the paper's W_gate and b_gate; decoder rows have unit norm, which is what keeps the penalty honest.

Inference is a threshold per feature: π > 0 exactly where (x − b_dec) W_enc exp(r_mag) + b_mag > b_mag − exp(r_mag) b_enc,
so both paths run through the sparse kernels. λ is fixed, or driven by `sae.controller` until the mean L0 is the one
asked for. AuxK for dead features (not in the paper) is off unless asked for.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import losses
from sae.base import SAE, Progress, Step
from sae.kernels import Revival, Select
from sae.variants.auxk import AuxK
from sae.variants.steered import SteeredConfig


class GatedConfig(SteeredConfig):
    """Config of Gated."""

    variant: Literal["gated"] = "gated"
    auxk: AuxK = AuxK(coefficient=0)
    """Revival of dead features."""


@final
class Gated(SAE):
    """A gate that an L1 penalty keeps sparse, and magnitudes that it does not shrink."""

    config: GatedConfig

    def add_tensors(self) -> None:
        """Gain and bias of the magnitudes."""
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encoder(self) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"]]:
        """That of the magnitudes."""
        return self.W_enc * self.r_mag.exp(), self.b_mag

    @torch.no_grad()
    def boundary(self) -> Float[Tensor, " d_sae"]:
        """Where the gate opens, in units of the magnitudes."""
        return self.b_mag - self.r_mag.exp() * self.b_enc

    def select(self) -> Select:
        """Where the gate is open and the magnitude positive."""
        return Select("threshold", threshold=self.boundary().clamp_min(0))

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the penalty on the gate, the auxiliary reconstruction, and AuxK if asked for."""
        code, x_hat = self.kernels.autoencode(
            x, *self.encoder(), self.W_dec, self.b_dec, replace(self.select(), fixed=True), b_pre=self.b_pre
        ).single()
        gate, frozen = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec.detach(), self.b_dec.detach(), Select("threshold", fixed=True),
            b_pre=self.b_pre,
        ).single()
        coefficient = self.config.coefficient_at(progress)
        terms = {
            "reconstruction": losses.reconstruction(target, x_hat, progress.weight),
            "l1": coefficient * self.ranks.over_features(gate.value.sum()) / gate.n_rows,
            # a skip path is part of the target here, and frozen like the decoder
            "gate": losses.reconstruction(target.detach(), frozen, progress.weight),
        }
        # who shares features has to agree whether any is dead
        room = progress.room if self.ranks.n_shards > 1 else None
        revival = self.config.auxk.revival(progress.dead, self.d_in, room)
        aux_hat = self.revived(x, revival)
        terms |= self.config.auxk.term((target - x_hat).detach(), aux_hat, revival, progress.weight, self.ranks)
        return Step(terms, code, x_hat, {"coefficient": coefficient})

    def launches(self, progress: Progress) -> Hashable | None:
        """The penalty's share rises on the host; who is revived is counted there."""
        fixed = self.kernels.keeps_all(progress.n_rows, self.d_sae) and self.config.auxk.coefficient == 0
        return self.config.share_at(progress) if fixed else None

    def revived(
        self, x: Float[Tensor, "n_rows d_in"], revival: Revival | None
    ) -> Float[Tensor, "n_rows d_out"] | None:
        """What AuxK reconstructs: through the gate, which is shut where a feature is dead, and a decoder that learns.

        Neither pass has both, so it is one of its own, over the dead features alone.
        """
        if revival is None:
            return None
        ids = revival.dead.nonzero().squeeze(-1)
        # of features that are shared, others may have more
        k = min(revival.k, len(ids)) if self.ranks.n_shards == 1 else revival.k
        select, b_dec = Select("topk", k=k), torch.zeros_like(self.b_dec)
        W_enc = self.W_enc.t()[ids].t()
        return self.kernels.autoencode(
            x, W_enc, self.b_enc[ids], self.W_dec[ids], b_dec, select, b_pre=self.b_pre
        ).x_hat.squeeze(0)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """The bias of the magnitudes; their gain over the gate is a ratio."""
        self.b_mag.mul_(norms)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """The gate opens where the magnitude exceeds them."""
        self.b_mag.copy_(self.b_enc)
        self.b_enc.sub_(threshold)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """The gain of the magnitudes over the gate, where the old one has it too."""
        if isinstance(old, Gated):
            self.r_mag.copy_(old.r_mag)
            # a gate may open where the magnitude is still below zero
            self.b_enc.copy_((self.b_mag - old.boundary() * gain) / self.r_mag.exp())
            self.W_enc.div_(self.r_mag.exp())
