"""ReLU with an L1 penalty (Bricken et al. 2023; with decoder norms: Conerly et al., Anthropic, April 2024).

    acts = ReLU((x − b_dec) W_enc + b_enc)       x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + λ Σ_f acts_f ‖W_dec,f‖

Decoder norms are unconstrained, because the penalty includes them. λ is fixed (with a warm-up), or `sae.controller` moves
it until the mean L0 reaches its target.
"""

from collections.abc import Hashable
from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, Step
from sae.kernels import Select
from sae.variants.steered import SteeredConfig


class ReLUConfig(SteeredConfig):
    """Config of ReLU + L1."""

    variant: Literal["relu"] = "relu"


@final
class ReLU(SAE):
    """ReLU activations with an L1 penalty."""

    config: ReLUConfig
    unit_norm_decoder: ClassVar[bool] = False

    def select(self) -> Select:
        """All positive pre-activations."""
        return Select("threshold", threshold=0.0)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction and the L1 penalty."""
        code, x_hat = self.autoencode(x, Select("threshold", fixed=True)).single()
        coefficient = self.config.coefficient_at(progress)
        terms = {
            "reconstruction": losses.reconstruction(target, x_hat, progress.weight),
            "l1": coefficient * self.ranks.over_features(losses.l1(code, self.W_dec.norm(dim=1))),
        }
        return Step(terms, code, x_hat, {"coefficient": coefficient})

    def launches(self, progress: Progress) -> Hashable | None:
        """The warm-up factor, which is computed on the host."""
        return self.config.share_at(progress) if self.kernels.keeps_all(progress.n_rows, self.d_sae) else None
