"""AbsTopK: the k features of largest |pre|, sign kept (Zhu et al. 2510.00404), over the row or over the batch.

    pre = (x − b_dec) W_enc + b_enc      acts = pre on the k largest |pre|, 0 elsewhere      x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + α ‖e − ê‖²         e = x − x̂ held constant, ê from the k_aux dead features of largest |pre|

One step of proximal gradient for the ℓ0-constrained dictionary problem: hard thresholding without the constraint
acts ≥ 0, so that one feature carries both ends of an axis.

Where the paper is silent: decoder norms, dead features and k-annealing are as in TopK; AuxK ranks by |pre| as well.
`absbatchtopk` does over the batch what AbsTopK does over the row, as BatchTopK does it for TopK; its inference
threshold is on |pre|.
"""

from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, Step, TopKConfig, Transform, auxk_term
from sae.kernels import Select
from sae.variants.batchtopk import BatchThreshold


class AbsTopKConfig(TopKConfig):
    """Config of AbsTopK."""

    variant: Literal["abstopk"] = "abstopk"


class AbsBatchTopKConfig(TopKConfig):
    """Config of AbsTopK over the batch."""

    variant: Literal["absbatchtopk"] = "absbatchtopk"
    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step, at most, of the average that becomes the inference threshold."""


def signed_step(
    sae: SAE, config: TopKConfig, select: Select, x: Float[Tensor, "n_rows d_in"],
    target: Float[Tensor, "n_rows d_out"], progress: Progress,
) -> Step:
    """Reconstruction and AuxK with signed activations."""
    code, x_hat = sae.kernels.autoencode(x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, select, b_pre=sae.b_pre).single()
    terms = {"reconstruction": losses.reconstruction(target, x_hat)}
    terms |= auxk_term(sae, config.auxk, x, target - x_hat, progress.dead, absolute=True)
    return Step(terms, code, x_hat)


@final
class AbsTopK(SAE):
    """Exactly k features per row, by largest |pre-activation|, of either sign."""

    config: AbsTopKConfig

    def select(self) -> Select:
        """The k largest of each row by absolute value."""
        return Select("topk", k=self.config.k, absolute=True)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """None: both ends of a feature compete alike, for one of k places."""

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and AuxK."""
        select = Select("topk", k=self.config.k_at(progress), absolute=True)
        return signed_step(self, self.config, select, x, target, progress)


@final
class AbsBatchTopK(BatchThreshold):
    """k features per row on average, of either sign; at inference, those whose |value| is above a learnt threshold."""

    config: AbsBatchTopKConfig

    def __init__(
        self, config: AbsBatchTopKConfig, d_in: int, d_out: int | None = None,
        *, input: Transform | None = None, target: Transform | None = None,
    ) -> None:
        super().__init__(config, d_in, d_out, input=input, target=target)
        self.begin_threshold()

    def select(self) -> Select:
        """Further from zero than the threshold."""
        return Select("threshold", threshold=self.threshold, absolute=True)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and AuxK."""
        select = Select("batch_topk", k=self.config.k_at(progress), absolute=True)
        return signed_step(self, self.config, select, x, target, progress)

    def observe(self, step: Step) -> None:
        """Advance the inference threshold."""
        self.move_threshold(step, self.config.threshold_decay)
