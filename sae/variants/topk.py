"""TopK and its kin: k features per row, chosen over the row or over the batch, by size of either sign or not.

    pre = (x − b_dec) W_enc + b_enc        acts = the largest of ReLU(pre), 0 elsewhere        x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + α ‖e − ê‖²           e = x − x̂ held constant, ê from the k_aux strongest dead features

`topk`: the k largest of each row (Gao et al. 2406.04093). Where the paper is silent: rows with fewer than k positive
pre-activations have fewer active features; the decoder is kept at unit norm and its gradient without radial part (Gao et
al. §A.1); dead is counted in training rows; k may fall linearly from a larger start.

With `tied`, `apply_b_dec_to_input: false` and AuxK off it is the k-sparse autoencoder (Makhzani & Frey 1312.5663):

    pre = x W_decᵀ + b_enc        x̂ = acts W_dec + b_dec        loss = ‖x − x̂‖²

in training with k falling (`k_anneal`), at inference with α · k (`alpha`). The gradient of W_dec is the sum of what comes
through its two uses; W_enc is a copy, brought up to date after each step. Theirs differs in two ways: rows of W are not
kept at unit norm, and of fewer than k positive pre-activations negative ones are taken in as well.

`batchtopk`: the k · n_rows largest of the batch (Bussmann et al. 2412.06410).

    inference: acts = pre where pre > θ,    θ = E[min of the active activations of a batch]      (their eq. 6)

The paper does not say over which batches the expectation goes. θ that keeps k features moves as long as the weights do:
over the last third of 300 steps by a tenth, so that an average over the last hundred of them leaves 26 of 32 features.
Here the average's memory is a thirtieth of the steps so far, and 1 / (1 − `threshold_decay`) batches at most:

    θ ← (w θ d + min) / (w d + 1)     w ← w d + 1     d = min(threshold_decay, 1 − (1 − 1/30) / w),  0 at first

w being the batches it rests on, so that w grows by a thirtieth a step. Nothing is known of how long training will be,
so that the threshold of a checkpoint is as good as the last one.

`abstopk`, `absbatchtopk`: the same by |pre|, and acts = pre with its sign (Zhu et al. 2510.00404): one step of proximal
gradient for the ℓ0-constrained dictionary problem, hard thresholding without the constraint acts ≥ 0, so that one
feature carries both ends of an axis. AuxK ranks by |pre| as well, and θ is on |pre|; the paper has it over the row only.
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
"""By how many batches the memory of a threshold grows a step: the share of the steps so far that it reaches back."""


class KAnneal(Section):
    """k falls linearly from `start` to its final value."""

    start: Count = Field(gt=0)
    """k at the first step."""
    over: Duration
    """How long the fall takes."""


class CountConfig(SAEConfig):
    """What the configs of the variants that keep k features per row have in common."""

    k: Count = Field(gt=0)
    """Active features per row (on average over the batch for the batch variants)."""
    k_anneal: KAnneal | None = None
    """Begin with more active features; null trains with k throughout."""
    alpha: float = Field(default=1.0, ge=1)
    """At inference alpha · k features of a row are active (1312.5663: 1 to 3); not for the batch variants."""
    tied: bool = False
    """The encoder is the decoder's transpose, W_enc = W_decᵀ (1312.5663). SAEs only."""
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
            raise ValueError(f"alpha is for a count of each row; at inference a threshold chooses for {self.rule}")
        return self

    @property
    def k_at_inference(self) -> int:
        """Active features of a row at inference."""
        return round(self.alpha * self.k)

    @property
    def rule(self) -> str:
        """The name of the rule that chooses active features."""
        return self.variant

    @property
    def absolute(self) -> bool:
        """They are chosen by |pre|, and signed."""
        return self.rule.startswith("abs")

    @property
    def over_batch(self) -> bool:
        """They are chosen over the batch, and by a learnt threshold at inference."""
        return "batch" in self.rule

    def k_at(self, progress: Progress) -> int:
        """k in force at this point of the training."""
        if self.k_anneal is None:
            return self.k
        return round(self.k_anneal.start + (self.k - self.k_anneal.start) * progress.through(self.k_anneal.over))


class BatchCountConfig(CountConfig):
    """Those that may choose over the batch."""

    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step, at most, of the average that becomes the inference threshold: it reaches over 1/30 of the steps."""


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
    """Config of AbsTopK over the batch."""

    variant: Literal["absbatchtopk"] = "absbatchtopk"


class TopK(SAE):
    """k features per row, by largest (absolute) pre-activation of the row or of the batch, as the config says."""

    config: CountConfig
    threshold_sum: Tensor
    threshold_weight: Tensor

    def add_tensors(self) -> None:
        """The average that becomes the threshold: it is the quotient; the weight counts the batches it rests on."""
        if self.config.tied:
            if self.d_in != self.d_out:
                raise SaescopeError(
                    f"sae.tied: the encoder reads {self.d_in} numbers and the decoder writes {self.d_out}, so neither can "
                    "be the other's transpose; leave it out for a transcoder."
                )
            self.W_enc.requires_grad_(False)
        if self.config.over_batch:
            self.register_buffer("threshold_sum", torch.zeros(()))
            self.register_buffer("threshold_weight", torch.zeros(()))

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """The inference threshold on (absolute) pre-activations, of those that choose over the batch."""
        return (self.threshold_sum / self.threshold_weight.clamp_min(1e-30)).to(self.b_enc.dtype)

    def select(self) -> Select:
        """The k largest of each row, or those beyond the threshold."""
        if self.config.over_batch:
            return Select("threshold", threshold=self.threshold, absolute=self.config.absolute)
        return self.select_in_training(self.config.k_at_inference)

    def select_in_training(self, k: int) -> Select:
        """The k largest of each row, or of the batch as many on average."""
        mode: Literal["batch_topk", "topk"] = "batch_topk" if self.config.over_batch else "topk"
        return Select(mode, k=k, absolute=self.config.absolute)

    def select_at(self, progress: Progress) -> Select:
        """As many as k is by now."""
        return self.select_in_training(self.config.k_at(progress))

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], select: Select, *, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """As for any SAE; where it is tied, through W_dec alone."""
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
        """How many features are active, and how many may be dead."""
        return self.config.k_at(progress), progress.room

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Bring a tied encoder up to date; move the threshold of those that choose over the batch to the least |value|."""
        if self.config.tied:
            self.W_enc.copy_(self.W_dec.t())
        if not self.config.over_batch:
            return
        size = step.code.value.detach().abs()
        assert isinstance(self.config, BatchCountConfig)
        least = torch.where(size > 0, size, torch.inf).min() if size.numel() else size.new_tensor(torch.inf)
        least = self.ranks.least(least)
        found = least.isfinite()  # not asked of the device, which would have to be waited for
        decay = (1 - (1 - GROWTH) / self.threshold_weight).clamp(0, self.config.threshold_decay)
        for total, now in ((self.threshold_sum, least), (self.threshold_weight, torch.ones_like(least))):
            total.copy_(torch.where(found, total * decay + now, total))

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """By how much they exceed the least of them is taken off b_enc; that one is as if learnt from one batch.

        So the features that are active are the same over the batch, and in each row the k that exceed their thresholds
        by most. Of signed values nothing is taken off: both ends of a feature compete alike.
        """
        least = self.ranks.least(threshold.min())
        if not self.config.absolute:
            self.b_enc.sub_(threshold - least)
        if self.config.over_batch:
            self.threshold_sum.copy_(least)
            self.threshold_weight.copy_(least > 0)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """Refuse to begin a tied SAE from another.

        Raises:
            SaescopeError: the other's encoder is not its decoder's transpose.
        """
        if self.config.tied and not getattr(old.config, "tied", False):
            raise SaescopeError("init.from: sae.tied begins from a tied SAE only: another's encoder would be lost.")
        super().take_extras(old, gain)
