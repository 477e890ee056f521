"""JumpReLU: a learnt threshold per feature and an L0 penalty, by straight-through gradients (2407.14435).

    pre = (x − b_dec) W_enc + b_enc      acts = pre · H(pre − θ)      x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + λ L0      or, for a target:   ‖x − x̂‖² + pull (L0 − target)² / target      L0 = Σ_f H(pre_f − θ_f)

H is the step function. With the rectangle K(u) = 1 for |u| < 1/2, else 0, and the bandwidth ε (their §3):

    ∂acts/∂θ := −(θ/ε) K((pre − θ)/ε)      ∂H/∂θ := −(1/ε) K((pre − θ)/ε)      ∂acts/∂pre = H(pre − θ)      ∂H/∂pre = 0

pre is compared once, with θ, for both terms: the published pseudo-code passes the activations through the step a second
time, which hides the half of the window that lies below θ.

Chosen here: θ is a parameter in fp32 up to a constant unit, not by its logarithm, whose gradient vanishes with θ; it is
kept at ε/2 or above, so that the window lies where activations can be. Adam moves θ by about the learning rate per step
however large its gradient. So a λ steered from outside overshoots, and a target is reached by the quadratic term
instead: its L0 is the mean over the batch, its slope the λ of the moment (logged as `coefficient`, negative below the
target). And so in trainings of some thousand steps θ does not come far enough; it has a higher rate (threshold_lr).

Units: λ, θ and ε are in normalised units, where a row's mean squared norm is d_in, so that x along a random unit
direction has a spread of 1. The paper's rows have unit mean squared norm: its θ and ε are √d_in times, its λ is d_in
times as large here. Where features are orthogonal, θ settles at √λ: one that reconstructs a saves a² and costs λ.

The paper begins with θ = ε = 0.001, which is 0.05 here at the widths of its models (2,304 to 3,584), and trains for so
long that θ has the time to travel. So θ = ε = 0.05 with a fixed λ. With a target, θ begins where a unit normal variable
is above it for target_l0 of d_sae features, and ε is a tenth of that. A window much narrower than 0.05 holds so few
entries of a batch that the gradient of θ is noise: a tenth of 0.001 √d_in leaves an L0 of 3.1 on half-normal features,
with λ = 3, where the loss is least at 2.0. Decoder rows have unit norm. AuxK (not in the paper) is off unless asked for.
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
"""The paper's first θ and its ε, 0.001 for rows of unit mean squared norm, in normalised units at its models' widths."""
_CHUNK = 1 << 15


class JumpReLUConfig(SteeredConfig):
    """Config of JumpReLU."""

    variant: Literal["jumprelu"] = "jumprelu"
    sparsity: Sparsity = Sparsity(target_l0=32)
    """λ, or the L0 to reach. λ is the squared error that one more active feature must save, in normalised units, where a
    row's mean squared norm is d_out: d_out times the paper's λ, whose rows have unit mean squared norm."""
    threshold: float | None = Field(default=None, gt=0)
    """θ at first, in normalised units; null: for target_l0 normal pre-activations, or the paper's, which is 0.05 there."""
    bandwidth: float | None = Field(default=None, gt=0)
    """ε, the width of the window around θ, in normalised units; null: 0.05, the paper's, or a tenth of the first θ where
    that is more, and no more than θ. Narrower, it holds too few entries of a batch for a gradient."""
    threshold_lr: float = Field(default=5.0, gt=0)
    """Learning rate of θ, as a multiple of the one of all else."""
    pull: float = Field(default=100.0, gt=0)
    """Weight of the pull towards target_l0; where λ would be the fixed coefficient, L0 ends λ / (2 pull) above it."""
    auxk: AuxK = AuxK(coefficient=0)
    """Revival of dead features."""

    def start(self) -> float:
        """θ at first."""
        target = self.sparsity.target_l0
        if self.threshold is not None:
            return self.threshold
        if target is None or target >= self.d_sae / 2:
            return PAPER_START
        return max(PAPER_START, self.init.encoder_scale * normal_quantile(target / self.d_sae))


def normal_quantile(share: float) -> float:
    """What a unit normal variable exceeds with this probability."""
    return NormalDist().inv_cdf(1 - share)


class Jump(torch.autograd.Function):
    """The straight-through gradient of θ, for a reconstruction and a toll that were computed with the step itself.

    The toll is Σ_f c_f · (active entries of f) / n_rows: the L0 where every price c_f is 1. Forward gives both back;
    backward passes their gradients on and adds, from the entries inside the window,

        ∂loss/∂θ_f = −(θ_f/ε) Σ_r K_rf ⟨∂loss/∂x̂_r, W_dec,f⟩ − (c_f/ε) ∂loss/∂toll · Σ_r K_rf / n_rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x_hat: Tensor, toll: Tensor, threshold: Tensor, W_dec: Tensor, rows: Tensor, feature: Tensor,
        bandwidth: float, price: Tensor | float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """`rows`, `feature`: the entries with |pre − θ| < ε/2. `price`: c, of each feature or of all."""
        ctx.save_for_backward(threshold, W_dec, rows, feature)
        ctx.bandwidth, ctx.price = bandwidth, price
        return x_hat.view_as(x_hat), toll.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, as above."""
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
    """⟨g_row, W_dec_feature⟩ of each pair, a bounded number at a time."""
    pairs = zip(rows.split(_CHUNK), feature.split(_CHUNK), strict=True)
    return torch.cat([(g[row] * W_dec[f]).sum(1) for row, f in pairs] or [g.new_zeros(0)])


class LearntThreshold(SAE):
    """What the variants share that learn a threshold per feature by such gradients."""

    theta: nn.Parameter

    def begin_thresholds(self, start: float, bandwidth: float | None, lr: float) -> None:
        """Add θ, first `start`, with a window of width `bandwidth` (None: the default) and its own learning rate."""
        self.bandwidth, self.threshold_lr = bandwidth or min(start, max(PAPER_START, start / 10)), lr
        # Adam moves every parameter by about its learning rate, so that the unit a parameter is in sets its pace
        self.theta = nn.Parameter(torch.full((self.d_sae,), start / lr))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ, in units of the pre-activations."""
        return self.theta * self.threshold_lr

    def select(self) -> Select:
        """Above each feature's threshold."""
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
        """Keep thresholds where an activation can come near them."""
        del step
        self.theta.clamp_(min=self.bandwidth / 2 / self.threshold_lr)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Thresholds live in units of the activation."""
        self.theta.mul_(norms)

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Each feature has its own."""
        self.theta.copy_(threshold / self.threshold_lr)


@final
class JumpReLU(LearntThreshold):
    """Active where the pre-activation exceeds the feature's own threshold; a penalty on their number keeps them few."""

    config: JumpReLUConfig

    def add_tensors(self) -> None:
        """θ."""
        self.begin_thresholds(self.config.start(), self.config.bandwidth, self.config.threshold_lr)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the L0 penalty, and AuxK if asked for."""
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
        """λ L0 or the pull towards the target L0, and its slope: the λ that acts on this step."""
        share, goal = progress.through(self.config.warmup), self.config.sparsity.target_l0
        if goal is None:
            return share * progress.coefficient * l0, share * progress.coefficient
        weight = share * self.config.pull
        return weight * (l0 - goal).square() / goal, 2 * weight * (l0.detach() / goal - 1)
