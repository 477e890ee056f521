"""Gated: separate paths for which features are active and for their magnitudes, with shared directions (2404.16014).

    π = (x − b_dec) W_enc + b_enc                     gate = H(π)
    mag = ReLU((x − b_dec) W_enc exp(r_mag) + b_mag)  acts = gate · mag        x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + λ Σ_f ReLU(π_f) + ‖x − (ReLU(π) sg(W_dec) + sg(b_dec))‖²

sg is stop-gradient: the auxiliary third term trains the gate, which gets no gradient from the first through the step H. It
must not train the decoder, or the shrinkage due to the penalty would come back (their §3.2). b_dec inside π gets gradients.
W_enc and b_enc are the paper's W_gate and b_gate; unit-norm decoder rows keep the model from evading the penalty.

At inference there is a threshold per feature: π > 0 exactly where
(x − b_dec) W_enc exp(r_mag) + b_mag > b_mag − exp(r_mag) b_enc, so both paths use the sparse kernels. λ is fixed, or
`sae.controller` moves it until the mean L0 reaches its target. AuxK for dead features (not in the paper) is off by default.
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
    """A gate with an L1 penalty, and magnitudes that the penalty does not shrink."""

    config: GatedConfig

    def add_tensors(self) -> None:
        """Add log-gain and bias of the magnitudes."""
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encoder(self) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"]]:
        """The encoder of the magnitudes."""
        return self.W_enc * self.r_mag.exp(), self.b_mag

    @torch.no_grad()
    def boundary(self) -> Float[Tensor, " d_sae"]:
        """The gate's threshold, in units of the magnitudes."""
        return self.b_mag - self.r_mag.exp() * self.b_enc

    def select(self) -> Select:
        """Features whose gate is open and magnitude positive."""
        return Select("threshold", threshold=self.boundary().clamp_min(0))

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the penalty on the gate, the auxiliary reconstruction, and AuxK if enabled."""
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
            # the skip path is part of the target here, and detached like the decoder
            "gate": losses.reconstruction(target.detach(), frozen, progress.weight),
        }
        # feature shards must agree on whether any feature is dead
        room = progress.room if self.ranks.n_shards > 1 else None
        revival = self.config.auxk.revival(progress.dead, self.d_in, room)
        aux_hat = self.revived(x, revival)
        terms |= self.config.auxk.term((target - x_hat).detach(), aux_hat, revival, progress.weight, self.ranks)
        return Step(terms, code, x_hat, {"coefficient": coefficient})

    def launches(self, progress: Progress) -> Hashable | None:
        """The warm-up factor; None with AuxK, which counts dead features on the host."""
        fixed = self.kernels.keeps_all(progress.n_rows, self.d_sae) and self.config.auxk.coefficient == 0
        return self.config.share_at(progress) if fixed else None

    def revived(
        self, x: Float[Tensor, "n_rows d_in"], revival: Revival | None
    ) -> Float[Tensor, "n_rows d_out"] | None:
        """AuxK's reconstruction: the gate's pre-activations of dead features, through a decoder that is trained.

        Neither of the other passes computes this, so it is a separate pass over the dead features.
        """
        if revival is None:
            return None
        ids = revival.dead.nonzero().squeeze(-1)
        # with feature shards, other ranks may have more dead features
        k = min(revival.k, len(ids)) if self.ranks.n_shards == 1 else revival.k
        select, b_dec = Select("topk", k=k), torch.zeros_like(self.b_dec)
        W_enc = self.W_enc.t()[ids].t()
        return self.kernels.autoencode(
            x, W_enc, self.b_enc[ids], self.W_dec[ids], b_dec, select, b_pre=self.b_pre
        ).x_hat.squeeze(0)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale the magnitudes' bias; r_mag is a ratio and needs no scaling."""
        self.b_mag.mul_(norms)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Open the gate where the magnitude exceeds these thresholds."""
        self.b_mag.copy_(self.b_enc)
        self.b_enc.sub_(threshold)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """Copy r_mag if the old SAE is gated too."""
        if isinstance(old, Gated):
            self.r_mag.copy_(old.r_mag)
            # a gate may open while the magnitude is still negative
            self.b_enc.copy_((self.b_mag - old.boundary() * gain) / self.r_mag.exp())
            self.W_enc.div_(self.r_mag.exp())
