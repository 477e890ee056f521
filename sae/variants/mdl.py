"""MDL: trained on the description length of the data itself rather than on a sparsity penalty.

    acts = pre · H(pre − θ)      pre = (x − b_dec) W_enc + b_enc      x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + L0 Δ²/12 + λ · bits
    bits = Σ_f  H_f [log2((1 − p_f)/p_f) + v_f] − log2(1 − p_f)
    v_f  = −log2(1 − exp(−Δ/μ_f)) + (acts_f − θ_f)/μ_f · log2 e

Ayonrinde, Pearce & Sharkey (2410.11179) use the description length to choose among trained SAEs; here it is the loss. H_f
is 1 if f is active. The first part of the bits is the entropy code of the support under each feature's firing rate p_f:
rarer features cost more, and one that is almost always on costs next to nothing. v_f codes the value in steps of Δ, under
an exponential above the threshold with the feature's mean excess μ_f (a geometric distribution over whole steps; the value
is kept continuous, which makes the bits an upper bound). Rounding to steps adds an expected squared error of Δ²/12 per
active value, as decoder rows have unit norm; using the expectation instead of sampling keeps the loss deterministic. Δ is
given, or optimal for λ: with −log2 Δ bits and Δ²/12 error per value, d/dΔ vanishes at Δ² = 6 λ / ln 2.

λ is the squared error that one bit must save, `coefficient` hundredths of a percent of a row's mean squared norm; or a
controller moves it until the mean L0 reaches `target_l0`.

p and μ are running estimates over about 1/(1 − memory) batches, held constant in a step: the code length is stationary in
its own parameters at the optimum, so their gradient is zero. The prior of p is half a count for on and half for off
(p = 1/2, which costs nothing), and μ is shrunk to the mean over all features by one observation.

Where an activation jumps, its bits jump too. As in JumpReLU (`sae.variants.jumprelu`, whose estimator this uses) the
straight-through gradient of θ comes from a window of width ε, with the price of being active there,
c_f = λ [log2((1 − p_f)/p_f) − log2(1 − exp(−Δ/μ_f))] + Δ²/12.

Pruning: over the same running average, each feature's saving, Σ ‖e + acts_f W_dec,f‖² − ‖e‖² with e = x − x̂ (the increase
in error without it), is compared with its cost: λ times all its bits, including those of being off, plus `decoder_bits`,
plus rounding. From `prune_from` on, features that cost more than they save are switched off permanently. A feature that is
never active saves nothing, so it is pruned too.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae import losses
from sae.base import SAE, Progress, Step
from sae.code import SparseCode, sum_by_feature
from sae.controller import Sparsity
from sae.units import Duration
from sae.variants.auxk import AuxK
from sae.variants.jumprelu import Jump, LearntThreshold, normal_quantile, products
from sae.variants.steered import SteeredConfig

BASIS_POINT = 1e-4
"""The unit of the coefficient: this share of a row's mean squared norm per bit."""
OFF = 1e30
"""A threshold that no activation exceeds; finite, because SAELens files must be."""
_MEASURE_EVERY = 4


class MDLConfig(SteeredConfig):
    """Config of MDL."""

    variant: Literal["mdl"] = "mdl"
    sparsity: Sparsity = Sparsity(coefficient=1.0)
    """The squared error that a bit must save, in hundredths of a percent of a row's variance; or a target L0."""
    step: float | None = Field(default=None, gt=0)
    """Δ, the rounding step of values, in normalised units; null: √(6 λ / ln 2), the optimum for λ."""
    threshold: float | None = Field(default=None, gt=0)
    """Initial θ, in normalised units; null: normal pre-activations exceed it for start_l0 of d_sae features."""
    start_l0: float | None = Field(default=None, gt=0)
    """Active features per row that the initial θ is set for; null: 64, or an eighth of d_sae if that is less."""
    bandwidth: float | None = Field(default=None, gt=0)
    """ε, the width of the window around θ, in normalised units; null: as in jumprelu."""
    threshold_lr: float = Field(default=5.0, gt=0)
    """Learning rate of θ, as a multiple of the learning rate."""
    memory: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step of the running firing rates, mean values and savings."""
    prune_from: Duration = Duration(50, "%")
    """When pruning of features that cost more than they save starts; 100% of the budget: never."""
    decoder_bits: float = Field(default=0.0, ge=0)
    """Bits per row for storing a feature: the bits of its weights divided by the rows they are used for. 0: the decoder
    is free."""
    auxk: AuxK = AuxK(coefficient=0)
    """Revival of dead features that are not pruned."""

    @model_validator(mode="after")
    def _fits(self) -> "MDLConfig":
        if self.start_l0 is not None and self.start_l0 > self.d_sae:
            raise ValueError(
                f"start_l0 = {self.start_l0:g} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features"
            )
        if self.bandwidth is not None and self.bandwidth > 2 * self.start():
            raise ValueError(
                f"bandwidth = {self.bandwidth:g} is more than twice the initial threshold ({self.start():g}), so the "
                "window would extend below zero; make it smaller"
            )
        return self

    def start(self) -> float:
        """Initial θ; at least a hundredth of the pre-activations' standard deviation."""
        if self.threshold is not None:
            return self.threshold
        share = (self.start_l0 or min(64, self.d_sae / 8)) / self.d_sae
        return self.init.encoder_scale * max(0.01, normal_quantile(min(0.5, share)))


@dataclass(frozen=True)
class Tally:
    """Contribution of one step to the running estimates, per feature and summed over rows."""

    n_rows: int
    fired: Float[Tensor, " d_sae"]
    """Rows in which the feature is active."""
    excess: Float[Tensor, " d_sae"]
    """Summed excess of its activations over its threshold."""
    net: Float[Tensor, " d_sae"] | None
    """Saving minus cost, in squared error; not measured in every step."""


@dataclass(frozen=True, kw_only=True)
class MDLStep(Step):
    """A step with its contribution to the running estimates."""

    tally: Tally


@final
class MDL(LearntThreshold):
    """Minimises squared error plus λ · description length, and prunes features that are not worth their bits."""

    config: MDLConfig
    n_seen: Tensor
    fired: Tensor
    excess: Tensor
    net: Tensor
    net_weight: Tensor
    pruned: Tensor

    def add_tensors(self) -> None:
        """Add θ and the running estimates."""
        self.begin_thresholds(self.config.start(), self.config.bandwidth, self.config.threshold_lr)
        for name in ("n_seen", "net_weight"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("fired", "excess", "net"):
            self.register_buffer(name, torch.zeros(self.d_sae))
        self.register_buffer("pruned", torch.zeros(self.d_sae, dtype=torch.bool))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ, in units of the pre-activations; unreachable for pruned features."""
        return torch.where(self.pruned, OFF, super().threshold)

    # -- the code -----------------------------------------------------------------------------------------------------

    def price(self, coefficient: float | Tensor) -> float | Tensor:
        """λ: squared error per bit, in normalised units (where a row's mean squared norm is d_out)."""
        return coefficient * BASIS_POINT * self.d_out

    def quantum(self, coefficient: float | Tensor) -> float | Tensor:
        """Δ, in normalised units."""
        return self.config.step or (6 * self.price(coefficient) / math.log(2)) ** 0.5

    def rates(self) -> Float[Tensor, " d_sae"]:
        """p: recent firing rate of each feature."""
        p = (self.fired + 0.5) / (self.n_seen + 1)
        # an always-active feature would round to p = 1 after about 10⁷ rows, and being off would cost infinite bits
        return p.clamp(max=1 - torch.finfo(p.dtype).eps)

    def mean_excess(self, quantum: float | Tensor) -> Float[Tensor, " d_sae"]:
        """μ: recent mean excess of each feature's activations over its threshold."""
        pooled = (self.excess.sum() + quantum) / (self.fired.sum() + 1)
        return (self.excess + pooled) / (self.fired + 1)

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the priced bits with the rounding error, and AuxK if enabled."""
        auxk = self.config.auxk
        revival = auxk.revival(progress.dead & ~self.pruned, self.d_in, progress.room)
        out = self.autoencode(x, self.select(), auxk=revival)
        code, x_hat = out.single()
        share, coefficient = progress.through(self.config.warmup), progress.coefficient
        quantum, price, n = self.quantum(coefficient), self.price(coefficient), code.n_rows
        bits = code_bits(self.rates(), self.mean_excess(quantum), quantum)
        count = code.counts().to(x_hat.dtype)
        # sum by feature first: the backward of threshold[feature] would be a non-deterministic scatter-add
        by_feature = sum_by_feature(code.value, code.feature, self.d_sae)
        excess = by_feature - count * torch.where(self.pruned, 0, self.threshold)
        per_entry = price * (bits.on + bits.least) + quantum**2 / 12
        toll = (per_entry * count).sum() / n
        x_hat, toll = Jump.apply(
            x_hat, toll, self.threshold, self.W_dec.detach(), *self.window(x), self.bandwidth, per_entry
        )
        terms = {
            "reconstruction": losses.reconstruction(target, x_hat, progress.weight),
            "entries": share * (toll + price * bits.off.sum()),
            "values": share * price * (excess * bits.slope).sum() / n,
        }
        terms |= auxk.term((target - x_hat).detach(), out.aux_hat, revival, progress.weight)
        with torch.no_grad():
            cost = price * (n * bits.off + excess * bits.slope + n * self.config.decoder_bits) + per_entry * count
            total = (bits.of(count, excess, n)).sum()
            may_prune = progress.through(self.config.prune_from) >= 1
            net = None
            if may_prune and progress.step % _MEASURE_EVERY == 0:
                net = saving(code, target - x_hat, self.W_dec, progress.weight) - cost
            tally = Tally(n, count, excess.detach(), net)
        logs = {"coefficient": coefficient, "bits": total, "pruned": self.pruned.sum()}
        return MDLStep(terms, code, x_hat, logs, tally=tally)

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Update firing rates, mean excess and savings; prune features that cost more than they save."""
        super().observe(step)
        assert isinstance(step, MDLStep)
        tally, memory = step.tally, self.config.memory
        self.n_seen.mul_(memory).add_(tally.n_rows)
        self.fired.mul_(memory).add_(tally.fired)
        self.excess.mul_(memory).add_(tally.excess).clamp_(min=0)
        if tally.net is not None:
            memory **= _MEASURE_EVERY
            self.net.mul_(memory).add_(tally.net)
            self.net_weight.mul_(memory).add_(1 - memory)
            # prune once the average covers half of its window
            if self.net_weight >= 0.5:
                self.pruned |= self.net < 0

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale thresholds and excess, which are in activation units."""
        super().fold_norms(norms)
        self.excess.mul_(norms)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """Copy the running estimates if the old SAE is an MDL too."""
        if not isinstance(old, MDL):
            return
        self.theta.copy_(old.theta * old.threshold_lr * gain / self.threshold_lr)
        self.excess.copy_(old.excess * gain)
        for name in ("n_seen", "fired", "pruned"):
            getattr(self, name).copy_(getattr(old, name))


@dataclass(frozen=True)
class CodeBits:
    """Code lengths of each feature under its firing rate and mean excess, in bits."""

    on: Float[Tensor, " d_sae"]
    """Extra bits of being active compared with inactive."""
    off: Float[Tensor, " d_sae"]
    """Bits of being inactive."""
    least: Float[Tensor, " d_sae"]
    """Bits of a value exactly at the threshold."""
    slope: Float[Tensor, " d_sae"]
    """Extra bits per unit of excess over the threshold."""

    def of(
        self, count: Float[Tensor, " d_sae"], excess: Float[Tensor, " d_sae"], n_rows: int
    ) -> Float[Tensor, " d_sae"]:
        """Bits per row for features active in `count` rows with a summed `excess`."""
        return self.off + (count * (self.on + self.least) + excess * self.slope) / n_rows


def code_bits(p: Float[Tensor, " d_sae"], mean: Float[Tensor, " d_sae"], quantum: float | Tensor) -> CodeBits:
    """Code lengths for features with firing rate `p` and mean excess `mean` over their threshold."""
    return CodeBits(
        torch.log2((1 - p) / p), -torch.log2(1 - p), -torch.log2(-torch.expm1(-quantum / mean)),
        math.log2(math.e) / mean,
    )


def saving(
    code: SparseCode, error: Float[Tensor, "n_rows d_out"], W_dec: Float[Tensor, "d_sae d_out"],
    weight: Float[Tensor, "n_rows d_out"] | None = None,
) -> Float[Tensor, " d_sae"]:
    """Increase in squared error from ablating each feature alone, summed over rows.

    `weight`: weight of each entry's squared error (`Progress.weight`).
    """
    rows, feature, value = code.rows(), code.feature.long(), code.value
    weighted = error if weight is None else weight * error
    squares = W_dec.square()
    norms = squares.sum(1)[feature] if weight is None else products(weight, squares, rows, feature)
    grown = value * (2 * products(weighted, W_dec, rows, feature) + value * norms)
    return sum_by_feature(grown, feature, code.d_sae)
