"""Results of index queries: frozen dataclasses, convertible to JSON with `dataclasses.asdict`.

Values are activations in the model's units: the length that a feature adds to the reconstruction. Features of signed
codes have two sides, "+" and "-"; others only "+".
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

Side = Literal["+", "-"]


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary, and a feature's direct logit for it."""

    id: int
    text: str
    value: float


@dataclass(frozen=True)
class TokenShare:
    """A token that a feature fires on, and its share of the feature's active rows."""

    text: str
    share: float


@dataclass(frozen=True)
class Histogram:
    """Counts of active values by magnitude: bin j holds `edges[j] <= |value| < edges[j + 1]`.

    Edges are powers of 2^¼, so histograms of different indexes share their edges where they overlap.
    """

    edges: list[float]
    counts_pos: list[int]
    counts_neg: list[int]


@dataclass(frozen=True)
class Feature:
    """One feature over all encoded rows. Moments are over active values; None if there are too few."""

    feature: int
    n_active: int
    n_rows: int
    density: float
    """n_active / n_rows, fires per token."""
    density_low: float
    density_high: float
    """Wilson 95 % interval of the density (Wilson 1927), treating rows as independent."""
    n_negative: int
    """Number of active rows with a negative value."""
    n_contexts: int
    """Number of contexts in which it is active."""
    max: float
    """Largest value; 0 for a feature that is never active."""
    min: float
    """Smallest value: negative only for signed codes."""
    mean: float | None
    second_moment: float | None
    """Mean of value²."""
    std: float | None
    """Population standard deviation (divided by n)."""
    skew: float | None
    kurtosis: float | None
    """Excess kurtosis: 0 for a normal distribution."""
    decoder_norm: float | None
    """Norm of the decoder row before it was normalised for saving; None if unknown."""
    histogram: Histogram
    promoted: list[Token]
    suppressed: list[Token]
    """For side "-", swap `promoted` and `suppressed`."""
    dead: bool
    """Never active in this index."""


@dataclass(frozen=True)
class Picture:
    """An image context."""

    name: str
    """Name of the image."""
    pixels: UInt8[np.ndarray, "height width channels"]
    boxes: Float32[np.ndarray, "n_ctx 4"]
    """The image region of each position: top, left, height, width, as fractions of the image."""


@dataclass(frozen=True)
class Example:
    """A window of a context with the feature's value at each token, 0 where inactive. Images are shown whole."""

    feature: int
    seq: int
    position: int
    """Position of the peak in the context."""
    start: int
    stop: int
    pieces: list[str]
    """Text of tokens `start` to `stop`. A character made of several tokens is placed at the first; the others are ""."""
    values: list[float]
    value: float
    """Value at `position`."""
    picture: Picture | None = field(default=None, compare=False)
    """The context's image, if it is one."""


@dataclass(frozen=True)
class Group:
    """A group of examples: active rows with `low <= |value| < high` on one side, and their number.

    `name` is "top", "q1" (weakest tenth) to "q10", "random" (any active row) or "near" (near misses: inactive, on a token
    that the feature is active on elsewhere; `low` and `high` are 0). The last tenth includes its upper bound.
    """

    name: str
    low: float
    high: float
    population: int


@dataclass(frozen=True)
class Neighbour:
    """A neighbouring feature and its similarity.

    `score` is the decoder cosine or, for co-activation, the Jaccard index of the active rows; `pearson` is the
    correlation of values over all encoded rows.
    """

    feature: int
    score: float
    jaccard: float | None = None
    pearson: float | None = None


@dataclass(frozen=True)
class Both:
    """Co-activation of two features: counts of tokens and contexts, with examples."""

    total_rows: int
    total_contexts: int
    examples: list[tuple[Example, Example]]
    """The same window for each feature, containing both peaks; ordered by the weaker feature's strength."""


@dataclass(frozen=True)
class Hit:
    """A search match: `length` tokens from `position`."""

    seq: int
    position: int
    length: int


@dataclass(frozen=True)
class Similar:
    """A context and the cosine of its code with the query."""

    seq: int
    score: float
