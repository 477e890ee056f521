"""JumpReLU: a learnt threshold per feature and an L0 penalty, with straight-through gradients (2407.14435).

    pre = (x − b_dec) W_enc + b_enc      acts = pre · H(pre − θ)      x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + λ L0      or, for a target:   ‖x − x̂‖² + pull (L0 − target)² / target      L0 = Σ_f H(pre_f − θ_f)

H is the step function. With the rectangle K(u) = 1 for |u| < 1/2, else 0, and the bandwidth ε (their §3):

    ∂acts/∂θ := −(θ/ε) K((pre − θ)/ε)      ∂H/∂θ := −(1/ε) K((pre − θ)/ε)      ∂acts/∂pre = H(pre − θ)      ∂H/∂pre = 0

pre is compared with θ once, for both terms: the published pseudo-code passes the activations through the step a second
time, which hides the half of the window below θ.

Choices made here: the parameter is θ in fp32, in a constant unit, and not log θ, whose gradient vanishes with θ. It is kept
at ε/2 or above, so that the window stays where activations can be. Adam moves θ by about the learning rate per step
whatever the size of its gradient. Hence a λ moved by a controller overshoots, and a target L0 is reached by the quadratic
term instead: its L0 is the batch mean, and its slope is the effective λ (logged as `coefficient`, negative below the
target). Hence also θ moves too little in runs of a few thousand steps, so it has a higher learning rate (threshold_lr).

Units: λ, θ and ε are in normalised units, where a row's mean squared norm is d_in, so x along a random unit direction has
a standard deviation of 1. The paper's rows have unit mean squared norm: its θ and ε are multiplied by √d_in here, its λ by
d_in. With orthogonal features θ settles at √λ: a feature with activation a saves a² and costs λ.

The paper starts with θ = ε = 0.001, which is 0.05 here at the widths of its models (2,304 to 3,584), and trains long enough
for θ to move. So θ = ε = 0.05 with a fixed λ. With a target L0, θ starts where a standard normal variable exceeds it for
target_l0 of d_sae features, and ε is a tenth of that. A window much narrower than 0.05 contains so few entries of a batch
that the gradient of θ is noise: with a tenth of 0.001 √d_in, half-normal features end at an L0 of 3.1 with λ = 3, where the
loss is minimal at 2.0. Decoder rows have unit norm. AuxK (not in the paper) is off by default.
"""

from statistics import NormalDist
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from sae import losses
from sae.base import SAE, Progress, Step
from sae.code import SparseCode, sum_by_feature
from sae.controller import Sparsity
from sae.kernels import Select
from sae.variants.auxk import AuxK
from sae.variants.steered import SteeredConfig

PAPER_START = 0.05
"""The paper's initial θ and its ε (0.001 for rows of unit mean squared norm), in normalised units at its models' widths."""
_CHUNK = 1 << 15


class JumpReLUConfig(SteeredConfig):
    """Config of JumpReLU."""

    variant: Literal["jumprelu"] = "jumprelu"
    sparsity: Sparsity = Sparsity(target_l0=32)
    """λ, or a target L0. λ is the squared error that one more active feature must save, in normalised units, where a row's
    mean squared norm is d_out: d_out times the paper's λ, whose rows have unit mean squared norm."""
    threshold: float | None = Field(default=None, gt=0)
    """Initial θ, in normalised units; null: set for target_l0 with normal pre-activations, or else the paper's, 0.05."""
    bandwidth: float | None = Field(default=None, gt=0)
    """ε, the width of the window around θ, in normalised units; null: the paper's 0.05, or a tenth of the initial θ if that
    is larger, and at most θ. A narrower window contains too few entries of a batch for a useful gradient."""
    threshold_lr: float = Field(default=5.0, gt=0)
    """Learning rate of θ, as a multiple of the learning rate."""
    pull: float = Field(default=100.0, gt=0)
    """Weight of the quadratic penalty towards target_l0. If λ is the coefficient that would give target_l0, L0 ends
    λ / (2 pull) above the target, relatively."""
    auxk: AuxK = AuxK(coefficient=0)
    """Revival of dead features."""

    def start(self) -> float:
        """Initial θ."""
        target = self.sparsity.target_l0
        if self.threshold is not None:
            return self.threshold
        if target is None or target >= self.d_sae / 2:
            return PAPER_START
        return max(PAPER_START, self.init.encoder_scale * normal_quantile(target / self.d_sae))


def normal_quantile(share: float) -> float:
    """The value that a standard normal variable exceeds with this probability."""
    return NormalDist().inv_cdf(1 - share)


class Jump(torch.autograd.Function):
    """Straight-through gradient of θ, for a reconstruction and a toll that were computed with the step itself.

    The toll is Σ_f c_f · (active entries of f) / n_rows, which is the L0 if every price c_f is 1. Forward returns both
    unchanged; backward passes their gradients on and adds, from the entries inside the window,

        ∂loss/∂θ_f = −(θ_f/ε) Σ_r K_rf ⟨∂loss/∂x̂_r, W_dec,f⟩ − (c_f/ε) ∂loss/∂toll · Σ_r K_rf / n_rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x_hat: Tensor, toll: Tensor, threshold: Tensor, W_dec: Tensor, rows: Tensor, feature: Tensor,
        bandwidth: float, price: Tensor | float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """`rows`, `feature`: the entries with |pre − θ| < ε/2. `price`: c, per feature or one for all."""
        ctx.save_for_backward(threshold, W_dec, rows, feature)
        ctx.bandwidth, ctx.price = bandwidth, price
        return x_hat.view_as(x_hat), toll.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the class docstring."""
        g_x_hat, g_toll = grads
        threshold, W_dec, rows, feature = ctx.saved_tensors
        by_value = sum_by_feature(products(g_x_hat, W_dec, rows, feature), feature, len(threshold))
        by_count = sum_by_feature(torch.ones_like(rows, dtype=threshold.dtype), feature, len(threshold))
        g_threshold = -(threshold * by_value + ctx.price * g_toll * by_count / len(g_x_hat)) / ctx.bandwidth
        return g_x_hat, None, g_threshold, None, None, None, None, None


def products(
    g: Float[Tensor, "n_rows d_out"], W_dec: Float[Tensor, "d_sae d_out"], rows: Int64[Tensor, " n"],
    feature: Int64[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """⟨g_row, W_dec_feature⟩ of each pair, in chunks to bound memory."""
    pairs = zip(rows.split(_CHUNK), feature.split(_CHUNK), strict=True)
    return torch.cat([(g[row] * W_dec[f]).sum(1) for row, f in pairs] or [g.new_zeros(0)])


class LearntThreshold(SAE):
    """Base of variants that learn a threshold per feature with straight-through gradients."""

    theta: nn.Parameter

    def begin_thresholds(self, start: float, bandwidth: float | None, lr: float) -> None:
        """Add θ, initialised to `start`, with window width `bandwidth` (None: the default) and its own learning rate."""
        self.bandwidth, self.threshold_lr = bandwidth or min(start, max(PAPER_START, start / 10)), lr
        # Adam moves each parameter by about the learning rate per step, so θ's unit sets its effective learning rate
        self.theta = nn.Parameter(torch.full((self.d_sae,), start / lr))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ, in units of the pre-activations."""
        return self.theta * self.threshold_lr

    def select(self) -> Select:
        """Pre-activations above each feature's threshold."""
        return Select("threshold", threshold=self.threshold.detach())

    @torch.no_grad()
    def window(self, x: Float[Tensor, "n_rows d_in"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Rows and features of the entries with |pre − θ| < ε/2."""
        half, threshold = self.bandwidth / 2, self.threshold
        x = x if self.b_pre is None else x - self.b_pre
        low = Select("threshold", threshold=threshold - half)
        code: SparseCode = self.kernels.encode(x, self.W_enc, self.b_enc, low)
        feature = code.feature.long()
        inside = (code.value < threshold[feature] + half).nonzero().squeeze(-1)
        return code.rows()[inside], feature[inside]

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Clamp θ to at least half the bandwidth, where activations can reach it."""
        del step
        self.theta.clamp_(min=self.bandwidth / 2 / self.threshold_lr)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale thresholds, which are in activation units."""
        self.theta.mul_(norms)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Copy the thresholds exactly."""
        self.theta.copy_(threshold / self.threshold_lr)


@final
class JumpReLU(LearntThreshold):
    """A feature is active where its pre-activation exceeds its threshold; an L0 penalty makes codes sparse."""

    config: JumpReLUConfig

    def add_tensors(self) -> None:
        """Add θ."""
        self.begin_thresholds(self.config.start(), self.config.bandwidth, self.config.threshold_lr)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the L0 penalty, and AuxK if enabled."""
        auxk = self.config.auxk
        revival = auxk.revival(progress.dead, self.d_in, progress.room)
        out = self.autoencode(x, self.select(), auxk=revival)
        code, x_hat = out.single()
        l0 = self.ranks.over_rows(self.ranks.over_features(code.n_active / code.n_rows)).to(x_hat.dtype)
        x_hat, l0 = Jump.apply(x_hat, l0, self.threshold, self.W_dec.detach(), *self.window(x), self.bandwidth)
        penalty, coefficient = self.penalty(l0, progress)
        terms = {"reconstruction": losses.reconstruction(target, x_hat, progress.weight), "l0": penalty}
        terms |= auxk.term((target - x_hat).detach(), out.aux_hat, revival, progress.weight, self.ranks)
        return Step(terms, code, x_hat, {"coefficient": coefficient})

    def penalty(self, l0: Float[Tensor, ""], progress: Progress) -> tuple[Float[Tensor, ""], float | Tensor]:
        """λ L0 or the quadratic penalty towards the target L0, and its slope, the effective λ of this step."""
        share, goal = progress.through(self.config.warmup), self.config.sparsity.target_l0
        if goal is None:
            return share * progress.coefficient * l0, share * progress.coefficient
        weight = share * self.config.pull
        return weight * (l0 - goal).square() / goal, 2 * weight * (l0.detach() / goal - 1)
