"""The TopK family: keep k features per row, chosen per row or over the batch, by pre-activation or by its absolute value.

    pre = (x − b_dec) W_enc + b_enc        acts = the largest of ReLU(pre), 0 elsewhere        x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + α ‖e − ê‖²           e = x − x̂ held constant, ê from the k_aux strongest dead features

`topk`: the k largest of each row (Gao et al. 2406.04093). Details not in the paper: rows with fewer than k positive
pre-activations have fewer active features; decoder rows are kept at unit norm and their gradient loses its radial part
(Gao et al. §A.1); the dead window is counted in training rows; k may decrease linearly from a larger start.

With `tied`, `apply_b_dec_to_input: false` and AuxK off it is the k-sparse autoencoder (Makhzani & Frey 1312.5663):

    pre = x W_decᵀ + b_enc        x̂ = acts W_dec + b_dec        loss = ‖x − x̂‖²

with a decreasing k in training (`k_anneal`) and α · k at inference (`alpha`). W_dec gets the sum of the gradients of its
two uses; W_enc is a copy, updated after each step. Two differences to theirs: their rows of W are not kept at unit norm,
and they fill up with negative pre-activations when fewer than k are positive.

`batchtopk`: the k · n_rows largest of the batch (Bussmann et al. 2412.06410).

    inference: acts = pre where pre > θ,    θ = E[min of the active activations of a batch]      (their eq. 6)

The paper does not say over which batches to average. The θ that keeps k features drifts while the weights change: by a
tenth over the last third of 300 steps, so an average over the last hundred steps keeps only 26 of 32 features. Here the
average spans a thirtieth of the steps so far, and at most 1 / (1 − `threshold_decay`) batches:

    θ ← (w θ d + min) / (w d + 1)     w ← w d + 1     d = min(threshold_decay, 1 − (1 − 1/30) / w),  0 at first

w is the effective number of batches in the average and grows by a thirtieth per step. The rule does not depend on the
length of the run, so a checkpoint's threshold is as good as the final one.

`abstopk`, `absbatchtopk`: the same by |pre|, and acts = pre with its sign (Zhu et al. 2510.00404): one proximal gradient
step for the ℓ0-constrained dictionary problem, i.e. hard thresholding without the constraint acts ≥ 0, so one feature can
represent both directions of an axis. AuxK also ranks by |pre|, and θ applies to |pre|; the paper selects per row only.
"""

from collections.abc import Hashable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, SAEConfig, Step
from sae.errors import SaescopeError
from sae.kernels import Autoencoded, Revival, Select
from sae.section import Section
from sae.units import Count, Duration
from sae.variants.auxk import AuxK

GROWTH = 1 / 30
"""Growth of the threshold average's window, in batches per step: it spans this fraction of the steps so far."""


class KAnneal(Section):
    """Decrease k linearly from `start` to its final value."""

    start: Count = Field(gt=0)
    """k at the first step."""
    over: Duration
    """Duration of the decrease."""


class CountConfig(SAEConfig):
    """Config fields of variants that keep k features per row."""

    k: Count = Field(gt=0)
    """Active features per row (on average over the batch for the batch variants)."""
    k_anneal: KAnneal | None = None
    """Start with more active features; null: k throughout."""
    alpha: float = Field(default=1.0, ge=1)
    """At inference, alpha · k features per row are active (1312.5663: 1 to 3). Not for the batch variants."""
    tied: bool = False
    """Tie the encoder to the decoder, W_enc = W_decᵀ (1312.5663). SAEs only."""
    auxk: AuxK = AuxK()
    """Revival of dead features."""

    @model_validator(mode="after")
    def _k_fits(self) -> "CountConfig":
        for name, k in (("k", self.k), ("k_anneal.start", self.k_anneal.start if self.k_anneal else 0)):
            if k > self.d_sae:
                raise ValueError(f"{name} = {k} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features")
        if self.k_at_inference > self.d_sae:
            raise ValueError(f"alpha · k = {self.alpha:g} · {self.k} exceeds d_sae = {self.d_sae}; lower alpha")
        if self.alpha != 1 and self.over_batch:
            raise ValueError(f"alpha needs a fixed k per row, but {self.rule} uses a threshold at inference")
        return self

    @property
    def k_at_inference(self) -> int:
        """Active features per row at inference."""
        return round(self.alpha * self.k)

    @property
    def rule(self) -> str:
        """Name of the selection rule."""
        return self.variant

    @property
    def absolute(self) -> bool:
        """Whether features are selected by |pre|, with signed values."""
        return self.rule.startswith("abs")

    @property
    def over_batch(self) -> bool:
        """Whether features are selected over the batch, and by a learnt threshold at inference."""
        return "batch" in self.rule

    def k_at(self, progress: Progress) -> int:
        """k at this point in training."""
        if self.k_anneal is None:
            return self.k
        return round(self.k_anneal.start + (self.k - self.k_anneal.start) * progress.through(self.k_anneal.over))


class BatchCountConfig(CountConfig):
    """Config fields of variants that may select over the batch."""

    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Maximum decay per step of the average that becomes the inference threshold; it spans 1/30 of the steps so far."""


class TopKConfig(CountConfig):
    """Config of TopK."""

    variant: Literal["topk"] = "topk"


class AbsTopKConfig(CountConfig):
    """Config of AbsTopK."""

    variant: Literal["abstopk"] = "abstopk"


class BatchTopKConfig(BatchCountConfig):
    """Config of BatchTopK."""

    variant: Literal["batchtopk"] = "batchtopk"


class AbsBatchTopKConfig(BatchCountConfig):
    """Config of AbsBatchTopK."""

    variant: Literal["absbatchtopk"] = "absbatchtopk"


class TopK(SAE):
    """Keep the k largest (absolute) pre-activations per row, or on average over the batch."""

    config: CountConfig
    threshold_sum: Tensor
    threshold_weight: Tensor

    def add_tensors(self) -> None:
        """Add the running average of the inference threshold as sum and weight (in batches); check that `tied` fits."""
        if self.config.tied:
            if self.d_in != self.d_out:
                raise SaescopeError(
                    f"sae.tied: d_in = {self.d_in} and d_out = {self.d_out} differ, so the encoder cannot be the "
                    "decoder's transpose; leave it out for a transcoder."
                )
            self.W_enc.requires_grad_(False)
        if self.config.over_batch:
            self.register_buffer("threshold_sum", torch.zeros(()))
            self.register_buffer("threshold_weight", torch.zeros(()))

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """Inference threshold on (absolute) pre-activations, for the batch variants."""
        return (self.threshold_sum / self.threshold_weight.clamp_min(1e-30)).to(self.b_enc.dtype)

    def select(self) -> Select:
        """The k largest of each row, or those above the threshold."""
        if self.config.over_batch:
            return Select("threshold", threshold=self.threshold, absolute=self.config.absolute)
        return self.select_in_training(self.config.k_at_inference)

    def select_in_training(self, k: int) -> Select:
        """The k largest of each row, or k per row on average over the batch."""
        mode: Literal["batch_topk", "topk"] = "batch_topk" if self.config.over_batch else "topk"
        return Select(mode, k=k, absolute=self.config.absolute)

    def select_at(self, progress: Progress) -> Select:
        """Selection with the current k."""
        return self.select_in_training(self.config.k_at(progress))

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], select: Select, *, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """As in the base class; if tied, W_dec is used for both directions."""
        encoder = self.W_dec.t() if self.config.tied else self.W_enc
        return self.kernels.autoencode(
            x, encoder, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre, prefixes=prefixes, auxk=auxk
        )

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and AuxK."""
        auxk, select = self.config.auxk, self.select_at(progress)
        revival = auxk.revival(progress.dead, self.d_in, progress.room)
        out = self.autoencode(x, select, auxk=revival)
        code, x_hat = out.single()
        terms = {"reconstruction": losses.reconstruction(target, x_hat, progress.weight)}
        terms |= auxk.term((target - x_hat).detach(), out.aux_hat, revival, progress.weight, self.ranks)
        return Step(terms, code, x_hat)

    def launches(self, progress: Progress) -> Hashable | None:
        """The current k and the bound on dead features."""
        return self.config.k_at(progress), progress.room

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Update a tied encoder; update the batch variants' threshold with the smallest active |value|."""
        if self.config.tied:
            self.W_enc.copy_(self.W_dec.t())
        if not self.config.over_batch:
            return
        size = step.code.value.detach().abs()
        assert isinstance(self.config, BatchCountConfig)
        least = torch.where(size > 0, size, torch.inf).min() if size.numel() else size.new_tensor(torch.inf)
        least = self.ranks.least(least)
        found = least.isfinite()  # stays on the device to avoid a sync
        decay = (1 - (1 - GROWTH) / self.threshold_weight).clamp(0, self.config.threshold_decay)
        for total, now in ((self.threshold_sum, least), (self.threshold_weight, torch.ones_like(least))):
            total.copy_(torch.where(found, total * decay + now, total))

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Keep the smallest threshold as if learnt from one batch, and subtract the excess over it from b_enc.

        So the same features are active over the batch, and in each row the k that exceed their thresholds the most.
        Signed variants leave b_enc alone, because both signs of a feature compete equally.
        """
        least = self.ranks.least(threshold.min())
        if not self.config.absolute:
            self.b_enc.sub_(threshold - least)
        if self.config.over_batch:
            self.threshold_sum.copy_(least)
            self.threshold_weight.copy_(least > 0)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """Refuse to start a tied SAE from an untied one.

        Raises:
            SaescopeError: this SAE is tied and the old one is not.
        """
        if self.config.tied and not getattr(old.config, "tied", False):
            raise SaescopeError("init.from: with sae.tied the other SAE must be tied too, or its encoder would be lost.")
        super().take_extras(old, gain)
