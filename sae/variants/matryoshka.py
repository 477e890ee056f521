"""Matryoshka: nested dictionaries that each reconstruct the input alone (Bussmann et al. 2503.17547).

    acts as in the base variant, chosen once over all features        x̂_m = acts[:m] W_dec[:m] + b_dec
    loss = Σ_{m ∈ M} w_m ‖x − x̂_m‖² + α ‖e − ê‖²                      M = prefix lengths, the last is d_sae

The paper's loss is the unweighted sum (w = 1) over five fixed prefixes (1/32, 3/32, 7/32, 15/32 and all of the features),
or over prefixes resampled for every batch from a truncated Pareto distribution: P(length < l) ∝ 1 − l^−power for
1 ≤ l ≤ d_sae. AuxK is that of the whole dictionary.

Details not in the paper: sampled prefixes are distinct, and a pure function of the SAE's seed and the step. With
`stop_gradient` (not in the paper) a prefix's loss trains only the features it adds to the previous prefix, so features are
not affected by later ones: x̂_m = sg(x̂_m') + acts[m':m] W_dec[m':m].
"""

from collections.abc import Hashable
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae import losses
from sae.base import Progress, Step
from sae.section import Section
from sae.units import Count
from sae.variants.topk import BatchCountConfig, TopK

THIRTY_SECONDS = (1, 3, 7, 15, 32)
"""The paper's prefixes, in 32nds of d_sae."""


class Sampled(Section):
    """Resample the prefixes for every batch."""

    n: Count = Field(default=10, gt=1)
    """Prefixes per batch, including the whole dictionary."""
    power: float = Field(default=0.5, gt=0)
    """Exponent of the Pareto distribution; smaller values give longer prefixes."""


class MatryoshkaConfig(BatchCountConfig):
    """Config of Matryoshka."""

    variant: Literal["matryoshka"] = "matryoshka"
    base: Literal["topk", "batchtopk", "abstopk", "absbatchtopk"] = "batchtopk"
    """How active features are selected, over the whole dictionary."""
    prefixes: tuple[Count, ...] | None = None
    """Lengths of the nested dictionaries, ascending to d_sae; null: 1/32, 3/32, 7/32, 15/32 and all of d_sae."""
    sampled: Sampled | None = None
    """Resample the lengths for every batch instead."""
    weights: tuple[float, ...] | None = None
    """Weight of each prefix's loss; null: 1 each, as in the paper."""
    stop_gradient: bool = False
    """A prefix's loss trains only the features it adds to the previous prefix."""

    @model_validator(mode="after")
    def _prefixes_fit(self) -> "MatryoshkaConfig":
        if self.prefixes is not None:
            if self.sampled is not None:
                raise ValueError("give either prefixes or sampled")
            if not self.prefixes or any(a >= b for a, b in pairwise((0, *self.prefixes))):
                raise ValueError(f"prefixes = {list(self.prefixes)}: lengths must be ascending and at least 1")
            if self.prefixes[-1] != self.d_sae:
                raise ValueError(f"prefixes end at {self.prefixes[-1]}, but the last must be d_sae = {self.d_sae}")
        if self.sampled is not None and self.sampled.n > self.d_sae:
            raise ValueError(f"sampled.n = {self.sampled.n} exceeds d_sae = {self.d_sae}, so lengths cannot be distinct")
        self._weights_fit()
        return self

    def _weights_fit(self) -> None:
        n = self.sampled.n if self.sampled is not None else len(self.prefixes_at(0))
        if self.weights is not None and len(self.weights) != n:
            raise ValueError(f"there are {len(self.weights)} weights for {n} prefixes; give one for each")
        if self.weights is not None and (min(self.weights) < 0 or self.weights[-1] <= 0):
            raise ValueError("weights must not be negative, and that of the whole dictionary must be above 0")

    @property
    def rule(self) -> str:
        """Selection rule of the base variant."""
        return self.base

    def prefixes_at(self, step: int) -> tuple[int, ...]:
        """Prefix lengths at a step, ascending."""
        if self.sampled is not None:
            return draw_prefixes(self.d_sae, self.sampled, self.seed, step)
        if self.prefixes is not None:
            return self.prefixes
        return tuple(sorted({max(1, self.d_sae * part // THIRTY_SECONDS[-1]) for part in THIRTY_SECONDS}))


def draw_prefixes(d_sae: int, sampled: Sampled, seed: int, step: int) -> tuple[int, ...]:
    """`sampled.n` distinct lengths, ascending to d_sae: a pure function of its arguments, on every device."""
    # an odd multiplier mixes seed and step, so that runs with neighbouring seeds do not share sequences
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)
    below = torch.arange(1, d_sae + 1, dtype=torch.float64) ** -sampled.power
    lengths = torch.multinomial(below[:-1] - below[1:], sampled.n - 1, generator=generator) + 1
    return (*sorted(lengths.tolist()), d_sae)


def apart(x_hat: Float[Tensor, "n_prefixes n_rows d_out"]) -> Float[Tensor, "n_prefixes n_rows d_out"]:
    """The same reconstructions, each with gradients only to what it adds to the previous one."""
    return torch.cat([x_hat[:1], x_hat[:-1].detach() + (x_hat[1:] - x_hat[:-1])])


@final
class Matryoshka(TopK):
    """Nested dictionaries with one encoder; features are ordered from general to specific."""

    config: MatryoshkaConfig

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction from all features and from each shorter prefix, and AuxK."""
        config = self.config
        ends, select = config.prefixes_at(progress.step), self.select_at(progress)
        revival = config.auxk.revival(progress.dead, self.d_in, progress.room)
        code, x_hats, aux_hat = self.autoencode(x, select, prefixes=ends, auxk=revival)
        x_hat = x_hats[-1]
        errors = losses.reconstructions(target, apart(x_hats) if config.stop_gradient else x_hats, progress.weight)
        weights = config.weights or (1.0,) * len(ends)
        *shorter, whole = (error if w == 1 else w * error for w, error in zip(weights, errors, strict=True))
        terms = {"reconstruction": whole}
        if shorter:
            terms["prefixes"] = sum(shorter[1:], shorter[0])
        terms |= config.auxk.term((target - x_hat).detach(), aux_hat, revival, progress.weight, self.ranks)
        return Step(terms, code, x_hat)

    def launches(self, progress: Progress) -> Hashable | None:
        """None with sampled prefixes, which differ in every step."""
        return None if self.config.sampled is not None else super().launches(progress)
