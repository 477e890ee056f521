"""MDL: trained for the shortest description of the data rather than for a penalty that stands in for it.

    acts = pre · H(pre − θ)      pre = (x − b_dec) W_enc + b_enc      x̂ = acts W_dec + b_dec
    loss = ‖x − x̂‖² + L0 Δ²/12 + λ · bits
    bits = Σ_f  H_f [log2((1 − p_f)/p_f) + v_f] − log2(1 − p_f)
    v_f  = −log2(1 − exp(−Δ/μ_f)) + (acts_f − θ_f)/μ_f · log2 e

The description length of Ayonrinde, Pearce & Sharkey (2410.11179) selects among trained SAEs; here it is the loss. H_f
says whether f is active. The first part of the bits is the entropy code of the support under each feature's own firing
rate p_f: a feature pays more the rarer it is, and next to nothing if it is nearly always on. v_f is the code of its
value in steps of Δ, under an exponential above the threshold with the feature's own mean excess μ_f (in whole steps a
geometric distribution; the argument is left continuous, which makes the bits a bound from above). Rounding to steps
adds Δ²/12 of squared error per active value, decoder rows having unit norm: the expectation over a uniform error,
rather than a draw of it, so that nothing here is random. Δ is given, or the best for λ: with −log2 Δ bits and Δ²/12
error per value, d/dΔ vanishes at Δ² = 6 λ / ln 2.

λ is the squared error that one bit must save, `coefficient` hundredths of a percent of a row's mean squared norm; or a
controller moves it until the mean L0 is the one asked for (`target_l0`).

p and μ are running estimates over about 1/(1 − memory) batches, held constant in a step: at its minimum a code length
does not change with the code's own parameters, so that their gradient is zero. They begin by counting one half for and
one half against (p = 1/2, which costs nothing), and μ leans on the mean over all features by one observation.

Where an activation jumps, its bits do too. As in JumpReLU (`sae.variants.jumprelu`, whose estimator this is) the
straight-through gradient of θ takes from a window of width ε the price of being active there,
c_f = λ [log2((1 − p_f)/p_f) − log2(1 − exp(−Δ/μ_f))] + Δ²/12.

Pruning: over the same running average, each feature's saving, Σ ‖e + acts_f W_dec,f‖² − ‖e‖² with e = x − x̂ (what the
error would grow by without it), is set against what it costs: λ times all its bits, those of being off included, plus
`decoder_bits`, plus rounding. From `prune_from` on, one that costs more than it saves is switched off for good. A
feature that is never active saves nothing and goes too.
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
"""A threshold that no activation passes; finite, because SAELens' files are."""
_MEASURE_EVERY = 4


class MDLConfig(SteeredConfig):
    """Config of MDL."""

    variant: Literal["mdl"] = "mdl"
    sparsity: Sparsity = Sparsity(coefficient=1.0)
    """What a bit must save, in hundredths of a percent of a row's variance; or the L0 that this should lead to."""
    step: float | None = Field(default=None, gt=0)
    """Δ, to which values are rounded, in normalised units; null: √(6 λ / ln 2), the best for λ."""
    threshold: float | None = Field(default=None, gt=0)
    """θ at first, in normalised units; null: where a normal variable exceeds it for start_l0 of d_sae features."""
    start_l0: float | None = Field(default=None, gt=0)
    """Active features per row that the first θ is set for; null: 64, or an eighth of d_sae where that is less."""
    bandwidth: float | None = Field(default=None, gt=0)
    """ε, the width of the window around θ, in normalised units; null: as in jumprelu."""
    threshold_lr: float = Field(default=5.0, gt=0)
    """Learning rate of θ, as a multiple of the one of all else."""
    memory: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step of the running firing rates, mean values and savings."""
    prune_from: Duration = Duration(50, "%")
    """When features that cost more than they save begin to be switched off; 100% of the budget: never."""
    decoder_bits: float = Field(default=0.0, ge=0)
    """Bits per row that having a feature costs: its weights' bits over the rows they serve. 0: the decoder is given."""
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
                f"bandwidth = {self.bandwidth:g} is more than twice the first threshold ({self.start():g}), so that the "
                "window would reach below zero; make it smaller"
            )
        return self

    def start(self) -> float:
        """θ at first; never nearer to zero than a hundredth of a normal variable's spread."""
        if self.threshold is not None:
            return self.threshold
        share = (self.start_l0 or min(64, self.d_sae / 8)) / self.d_sae
        return self.init.encoder_scale * max(0.01, normal_quantile(min(0.5, share)))


@dataclass(frozen=True)
class Tally:
    """What one step adds to the running estimates, per feature and summed over its rows."""

    n_rows: int
    fired: Float[Tensor, " d_sae"]
    """Rows in which it is active."""
    excess: Float[Tensor, " d_sae"]
    """How far its activations exceed its threshold."""
    net: Float[Tensor, " d_sae"] | None
    """What it saves less what it costs, in squared error; not measured in every step."""


@dataclass(frozen=True, kw_only=True)
class MDLStep(Step):
    """A step with what it adds to the running estimates."""

    tally: Tally


@final
class MDL(LearntThreshold):
    """Active where the saving is worth the bits; what the data does not need is switched off."""

    config: MDLConfig
    n_seen: Tensor
    fired: Tensor
    excess: Tensor
    net: Tensor
    net_weight: Tensor
    pruned: Tensor

    def add_tensors(self) -> None:
        """θ and the running estimates."""
        self.begin_thresholds(self.config.start(), self.config.bandwidth, self.config.threshold_lr)
        for name in ("n_seen", "net_weight"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("fired", "excess", "net"):
            self.register_buffer(name, torch.zeros(self.d_sae))
        self.register_buffer("pruned", torch.zeros(self.d_sae, dtype=torch.bool))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ, in units of the pre-activations; out of reach for pruned features."""
        return torch.where(self.pruned, OFF, super().threshold)

    # -- the code -----------------------------------------------------------------------------------------------------

    def price(self, coefficient: float | Tensor) -> float | Tensor:
        """λ: squared error per bit, in normalised units (where a row's mean squared norm is d_out)."""
        return coefficient * BASIS_POINT * self.d_out

    def quantum(self, coefficient: float | Tensor) -> float | Tensor:
        """Δ, in normalised units."""
        return self.config.step or (6 * self.price(coefficient) / math.log(2)) ** 0.5

    def rates(self) -> Float[Tensor, " d_sae"]:
        """p: the share of rows in which each feature has been active of late."""
        p = (self.fired + 0.5) / (self.n_seen + 1)
        # one that is always active would have p = 1 after some 10⁷ rows, to rounding, and being off infinite bits
        return p.clamp(max=1 - torch.finfo(p.dtype).eps)

    def mean_excess(self, quantum: float | Tensor) -> Float[Tensor, " d_sae"]:
        """μ: how far each feature's activations have been above its threshold of late."""
        pooled = (self.excess.sum() + quantum) / (self.fired.sum() + 1)
        return (self.excess + pooled) / (self.fired + 1)

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, the bits at their price with what rounding adds, and AuxK if asked for."""
        auxk = self.config.auxk
        revival = auxk.revival(progress.dead & ~self.pruned, self.d_in, progress.room)
        out = self.autoencode(x, self.select(), auxk=revival)
        code, x_hat = out.single()
        share, coefficient = progress.through(self.config.warmup), progress.coefficient
        quantum, price, n = self.quantum(coefficient), self.price(coefficient), code.n_rows
        bits = code_bits(self.rates(), self.mean_excess(quantum), quantum)
        count = code.counts().to(x_hat.dtype)
        # summed by feature first: the gradient of threshold[feature] would be added up by threads in any order
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
        """Advance firing rates, mean values and savings; switch off what costs more than it saves."""
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
            # half of what an average over the whole window would rest on
            if self.net_weight >= 0.5:
                self.pruned |= self.net < 0

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Thresholds, and what exceeds them, live in units of the activation."""
        super().fold_norms(norms)
        self.excess.mul_(norms)

    def take_extras(self, old: SAE, gain: Float[Tensor, ""]) -> None:
        """What one of this kind knows of its features."""
        if not isinstance(old, MDL):
            return
        self.theta.copy_(old.theta * old.threshold_lr * gain / self.threshold_lr)
        self.excess.copy_(old.excess * gain)
        for name in ("n_seen", "fired", "pruned"):
            getattr(self, name).copy_(getattr(old, name))


@dataclass(frozen=True)
class CodeBits:
    """Bits of each feature under its own firing rate and mean excess."""

    on: Float[Tensor, " d_sae"]
    """What being active takes more than being inactive."""
    off: Float[Tensor, " d_sae"]
    """What being inactive takes."""
    least: Float[Tensor, " d_sae"]
    """What the value of an activation takes that is at its threshold."""
    slope: Float[Tensor, " d_sae"]
    """How much more that is per unit of excess over the threshold."""

    def of(
        self, count: Float[Tensor, " d_sae"], excess: Float[Tensor, " d_sae"], n_rows: int
    ) -> Float[Tensor, " d_sae"]:
        """Bits per row of features that are active in `count` rows with a summed `excess`."""
        return self.off + (count * (self.on + self.least) + excess * self.slope) / n_rows


def code_bits(p: Float[Tensor, " d_sae"], mean: Float[Tensor, " d_sae"], quantum: float | Tensor) -> CodeBits:
    """The code of features that are active with probability p and exceed their threshold by `mean` on average."""
    return CodeBits(
        torch.log2((1 - p) / p), -torch.log2(1 - p), -torch.log2(-torch.expm1(-quantum / mean)),
        math.log2(math.e) / mean,
    )


def saving(
    code: SparseCode, error: Float[Tensor, "n_rows d_out"], W_dec: Float[Tensor, "d_sae d_out"],
    weight: Float[Tensor, "n_rows d_out"] | None = None,
) -> Float[Tensor, " d_sae"]:
    """What the squared error would grow by without each feature, all others as they are, summed over rows.

    `weight` is what each entry's squared error counts by (`Progress.weight`).
    """
    rows, feature, value = code.rows(), code.feature.long(), code.value
    weighted = error if weight is None else weight * error
    squares = W_dec.square()
    norms = squares.sum(1)[feature] if weight is None else products(weight, squares, rows, feature)
    grown = value * (2 * products(weighted, W_dec, rows, feature) + value * norms)
    return sum_by_feature(grown, feature, code.d_sae)
