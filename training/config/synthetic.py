"""The config of synthetic rows: a hierarchy of features, how often they fire, and their directions."""

from itertools import accumulate
from operator import mul
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from sae.section import Section
from sae.units import Count, Seed

MOST_FEATURES = 1_000_000


class SyntheticConfig(Section):
    """Synthetic features and how often they fire."""

    seed: Seed = 0
    """Seed of directions and rows."""
    d: Count = Field(default=64, gt=0)
    """Width of a row."""
    roots: Count = Field(default=128, gt=0)
    """Root features, one per tree; without branching each tree is one feature."""
    singles: Count = 0
    """Additional features outside the trees, without children; in `zipf` their ranks follow those of the roots."""
    branching: tuple[Annotated[Count, Field(gt=0)], ...] = ()
    """Children per feature at each level: (3, 2) gives trees of 1 + 3 + 6 features."""
    density: float = Field(default=0.03, gt=0, lt=1)
    """Probability that a root is present; with zipf, its mean over roots and singles."""
    zipf: float = Field(default=0.0, ge=0)
    """Zipf exponent: the density of the i-th root is proportional to i^−zipf."""
    child: float = Field(default=0.8, ge=0, le=1)
    """Probability that a present feature has a present child."""
    exclusive: bool = True
    """Whether at most one child of a feature is present."""
    group: Count = Field(default=1, gt=0)
    """Size of the groups of correlated, neighbouring roots."""
    correlation: float = Field(default=0.0, ge=0, lt=1)
    """Correlation of the latent Gaussians of the roots in a group; or, with `rank`, the fraction of their variance that
    is shared."""
    rank: Count = 0
    """Instead of groups: number of latent Gaussian factors, which roots and singles load on in random proportions."""
    bipolar: float = Field(default=0.0, ge=0, le=1)
    """Fraction of features that take both signs, spread evenly over the features."""
    spread: float = Field(default=0.5, ge=0, lt=1)
    """The magnitude of a present feature is uniform in 1 ± spread."""
    noise: float = Field(default=0.05, ge=0)
    """Root mean square norm of the noise; features have magnitude 1 on average."""
    orthogonal: bool = False
    """Whether directions are orthogonal, instead of drawn from the unit sphere."""

    @model_validator(mode="after")
    def _fits(self) -> "SyntheticConfig":
        if self.n_features > MOST_FEATURES or self.d > MOST_FEATURES:
            raise ValueError(f"{self.n_features:,} features in d = {self.d:,}; both must be at most {MOST_FEATURES:,}")
        if self.orthogonal and self.n_features > self.d:
            raise ValueError(f"{self.n_features} features cannot be orthogonal in d = {self.d} dimensions")
        if (most := float(self.root_density().max())) >= 1:
            raise ValueError(f"the first root would be present with probability {most:.2f}; lower density or zipf")
        if self.rank and self.group > 1:
            raise ValueError("group and rank cannot be combined; set one of them")
        if self.roots % self.group:
            raise ValueError(f"group = {self.group} does not divide roots = {self.roots}")
        if self.correlation and self.group == 1 and not self.rank:
            raise ValueError("correlation needs a group of at least 2 roots, or a rank")
        if self.singles and self.group > 1:
            raise ValueError("singles cannot be in a group; use rank instead of group")
        return self

    @property
    def n_features(self) -> int:
        """Total number of features: trees and singles."""
        levels = accumulate(self.branching, mul, initial=1)
        return self.roots * sum(levels) + self.singles

    def parents(self) -> list[int]:
        """The parent of each feature, −1 for roots and singles; depth first, so parents come before their children."""
        out: list[int] = []

        def grow(parent: int, level: int) -> None:
            out.append(parent)
            me = len(out) - 1
            for _ in range(self.branching[level] if level < len(self.branching) else 0):
                grow(me, level + 1)

        for _ in range(self.roots):
            grow(-1, 0)
        return out + [-1] * self.singles

    def root_density(self) -> Float[np.ndarray, " n_roots"]:
        """Firing probability of each feature without a parent: roots, then singles."""
        weights = np.arange(1, self.roots + self.singles + 1, dtype=np.float64) ** -self.zipf
        return self.density * weights / weights.mean()

    def loadings(self) -> Float[np.ndarray, "rank n_roots"]:
        """Factor loadings of the features without a parent; unit columns."""
        drawn = np.random.default_rng([self.seed, 2]).standard_normal((self.rank, self.roots + self.singles))
        return drawn / np.linalg.norm(drawn, axis=0)

    def is_bipolar(self) -> Bool[np.ndarray, " n_features"]:
        """Which features take both signs."""
        steps = np.floor(self.bipolar * np.arange(self.n_features + 1) + 1e-9)
        return np.diff(steps) > 0

    def directions(self) -> Float[Tensor, "n_features d"]:
        """Unit direction of each feature."""
        drawn = np.random.default_rng([self.seed, 0]).standard_normal((self.n_features, self.d))
        rows = np.linalg.qr(drawn.T)[0].T if self.orthogonal else drawn
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
