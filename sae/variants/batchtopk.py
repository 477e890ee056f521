"""BatchTopK: k features per row on average, chosen over the whole batch (Bussmann et al. 2412.06410).

    acts = the k · n_rows largest of ReLU(pre) over the batch          x̂, loss and AuxK as in TopK
    inference: acts = pre where pre > θ,    θ = E[min of the active activations of a batch]      (their eq. 6)

θ is an exponential average over training batches. Where the paper is silent: the average is corrected for its start
(Adam's way), so that it is not biased low early on, and the first `threshold_decay` warms up with k-annealing.
"""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, Step, TopKConfig, Transform, auxk_term
from sae.kernels import Select


class BatchTopKConfig(TopKConfig):
    """Config of BatchTopK."""

    variant: Literal["batchtopk"] = "batchtopk"
    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step of the average that becomes the inference threshold."""


class BatchThreshold(SAE):
    """What the variants share that choose over the batch: an inference threshold on |value|, learnt while training."""

    threshold_sum: Tensor
    threshold_weight: Tensor

    def begin_threshold(self) -> None:
        """Add the buffers of the average."""
        # the average is their quotient
        self.register_buffer("threshold_sum", torch.zeros(()))
        self.register_buffer("threshold_weight", torch.zeros(()))

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """The inference threshold, in pre-activation units."""
        return (self.threshold_sum / self.threshold_weight.clamp_min(1e-30)).to(self.b_enc.dtype)

    @torch.no_grad()
    def move_threshold(self, step: Step, decay: float) -> None:
        """Move the average towards this batch's smallest active |value|."""
        size = step.code.value.detach().abs()
        if size.numel() == 0:
            return
        least = torch.where(size > 0, size, torch.inf).min()
        found = least.isfinite()  # not asked of the device, which would have to be waited for
        for total, now in ((self.threshold_sum, least), (self.threshold_weight, torch.ones_like(least))):
            total.copy_(torch.where(found, total * decay + (1 - decay) * now, total))

    def take_threshold(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """Go on from the threshold of an existing SAE, if it has learnt one in the same way."""
        if isinstance(old, BatchThreshold) and hasattr(old, "threshold_sum"):
            self.threshold_sum.copy_(old.threshold_sum * gain)
            self.threshold_weight.copy_(old.threshold_weight)


@final
class BatchTopK(BatchThreshold):
    """k features per row on average; at inference, those above a learnt threshold."""

    config: BatchTopKConfig

    def __init__(
        self, config: BatchTopKConfig, d_in: int, d_out: int | None = None,
        *, input: Transform | None = None, target: Transform | None = None,
    ) -> None:
        super().__init__(config, d_in, d_out, input=input, target=target)
        self.begin_threshold()

    def select(self) -> Select:
        """Above the threshold."""
        return Select("threshold", threshold=self.threshold)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and AuxK."""
        select = Select("batch_topk", k=self.config.k_at(progress))
        code, (x_hat,) = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre
        )
        terms = {"reconstruction": losses.reconstruction(target, x_hat)}
        terms |= auxk_term(self, self.config.auxk, x, target - x_hat, progress.dead)
        return Step(terms, code, x_hat)

    def observe(self, step: Step) -> None:
        """Advance the inference threshold."""
        self.move_threshold(step, self.config.threshold_decay)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """The threshold of an existing SAE that chose over the batch."""
        self.take_threshold(old, gain)
