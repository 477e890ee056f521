"""BatchTopK: k features per row on average, chosen over the whole batch (Bussmann et al. 2412.06410).

    acts = the k · n_rows largest of ReLU(pre) over the batch          x̂, loss and AuxK as in TopK
    inference: acts = pre where pre > θ,    θ = E[min of the active activations of a batch]      (their eq. 6)

The paper does not say over which batches the expectation goes. θ that keeps k features moves as long as the weights do:
over the last third of 300 steps by a tenth, so that an average over the last hundred of them leaves 26 of 32 features.
Here the average's memory is a thirtieth of the steps so far, and 1 / (1 − `threshold_decay`) batches at most:

    θ ← (w θ d + min) / (w d + 1)     w ← w d + 1     d = min(threshold_decay, 1 − (1 − 1/30) / w),  0 at first

w being the batches it rests on, so that w grows by a thirtieth a step. Nothing is known of how long training will be,
so that the threshold of a checkpoint is as good as the last one.
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
    """Decay per step, at most, of the average that becomes the inference threshold: it reaches over 1/30 of the steps."""


GROWTH = 1 / 30
"""By how many batches the memory of a threshold grows a step: the share of the steps so far that it reaches back."""


class BatchThreshold(SAE):
    """What the variants share that choose over the batch: an inference threshold on |value|, learnt while training."""

    threshold_sum: Tensor
    threshold_weight: Tensor

    def begin_threshold(self) -> None:
        """Add the buffers of the average."""
        # the average is their quotient; the weight counts the batches it rests on
        self.register_buffer("threshold_sum", torch.zeros(()))
        self.register_buffer("threshold_weight", torch.zeros(()))

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """The inference threshold, in pre-activation units."""
        return (self.threshold_sum / self.threshold_weight.clamp_min(1e-30)).to(self.b_enc.dtype)

    @torch.no_grad()
    def move_threshold(self, step: Step, longest: float) -> None:
        """Move the average towards this batch's smallest active |value|; its decay is `longest` at most."""
        size = step.code.value.detach().abs()
        if size.numel() == 0:
            return
        least = torch.where(size > 0, size, torch.inf).min()
        found = least.isfinite()  # not asked of the device, which would have to be waited for
        decay = (1 - (1 - GROWTH) / self.threshold_weight).clamp(0, longest)
        for total, now in ((self.threshold_sum, least), (self.threshold_weight, torch.ones_like(least))):
            total.copy_(torch.where(found, total * decay + now, total))

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """The least of them as if it were from one batch; by how much the others exceed it is taken off b_enc.

        Signed values have no such offset: both ends of a feature compete alike.
        """
        least = threshold.min()
        if not self.select().absolute:
            self.b_enc.sub_(threshold - least)
        self.threshold_sum.copy_(least)
        self.threshold_weight.copy_(least > 0)


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
        code, x_hat = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre
        ).single()
        terms = {"reconstruction": losses.reconstruction(target, x_hat)}
        terms |= auxk_term(self, self.config.auxk, x, target - x_hat, progress.dead)
        return Step(terms, code, x_hat)

    def observe(self, step: Step) -> None:
        """Advance the inference threshold."""
        self.move_threshold(step, self.config.threshold_decay)
