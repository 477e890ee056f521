"""TopK: exactly k features per row (Makhzani & Frey 1312.5663; Gao et al. 2406.04093).

    pre = (x − b_dec) W_enc + b_enc        acts = TopK(ReLU(pre))        x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + α ‖e − ê‖²           e = x − x̂ held constant, ê from the k_aux strongest dead features

Where the papers are silent: rows with fewer than k positive pre-activations have fewer active features; the decoder is
kept at unit norm and its gradient without radial part (Gao et al. §A.1); dead is counted in training rows; k may fall
linearly from a larger start.
"""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, Step, TopKConfig, auxk_term
from sae.kernels import Select


class TopKVariantConfig(TopKConfig):
    """Config of TopK."""

    variant: Literal["topk"] = "topk"


@final
class TopK(SAE):
    """Exactly k features per row, by largest pre-activation."""

    config: TopKVariantConfig

    def select(self) -> Select:
        """The k largest of each row."""
        return Select("topk", k=self.config.k)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """By how much they differ: a row keeps the k features that exceed theirs by most."""
        self.b_enc.sub_(threshold - threshold.min())

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and AuxK."""
        select = Select("topk", k=self.config.k_at(progress))
        code, x_hat = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre
        ).single()
        terms = {"reconstruction": losses.reconstruction(target, x_hat)}
        terms |= auxk_term(self, self.config.auxk, x, target - x_hat, progress.dead)
        return Step(terms, code, x_hat)
