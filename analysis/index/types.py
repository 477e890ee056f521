"""What an index answers with: frozen, and JSON-able by `dataclasses.asdict`.

Values are activations in the model's own units: the length that a feature adds to the reconstruction. A feature of a
signed code has two sides, "+" and "-"; those of other codes have "+" only.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

Side = Literal["+", "-"]


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary, and the logit that one feature gives it."""

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
    """Counts of active values by size: bin j holds `edges[j] <= |value| < edges[j + 1]`.

    Edges are powers of 2^¼, so that histograms of any two indexes share them wherever both have bins.
    """

    edges: list[float]
    counts_pos: list[int]
    counts_neg: list[int]


@dataclass(frozen=True)
class Feature:
    """One feature over all encoded rows. Moments are those of its active values; None where there are too few."""

    feature: int
    n_active: int
    n_rows: int
    density: float
    """n_active / n_rows: fires per token."""
    density_low: float
    density_high: float
    """The Wilson 95 % interval of the density (Wilson 1927), taking rows as independent."""
    n_negative: int
    """Active rows with a negative value."""
    n_contexts: int
    """Contexts in which it is active."""
    max: float
    """Largest value; 0 for a feature that is never active."""
    min: float
    """Smallest value: negative only for signed codes."""
    mean: float | None
    second_moment: float | None
    """Mean of value²."""
    std: float | None
    """√ of the mean squared deviation (divided by n)."""
    skew: float | None
    kurtosis: float | None
    """Excess kurtosis: 0 for a normal distribution."""
    decoder_norm: float | None
    """Norm of the decoder row before it was made 1 for saving; None where that is not known."""
    histogram: Histogram
    promoted: list[Token]
    suppressed: list[Token]
    """For the side "-" the two change places."""
    dead: bool
    """Never active in this index."""


@dataclass(frozen=True)
class Picture:
    """A context that is an image."""

    name: str
    """What it is called."""
    pixels: UInt8[np.ndarray, "height width channels"]
    boxes: Float32[np.ndarray, "n_ctx 4"]
    """The part that each position stands for: top, left, height, width, as shares of the whole."""


@dataclass(frozen=True)
class Example:
    """A stretch of one context with the feature's value at each token; 0 where it is not active. An image is seen whole."""

    feature: int
    seq: int
    position: int
    """Of the peak, within the context."""
    start: int
    stop: int
    pieces: list[str]
    """Text of the tokens `start` to `stop`; a character made of several tokens stands at its first, "" at the rest."""
    values: list[float]
    value: float
    """At `position`."""
    picture: Picture | None = field(default=None, compare=False)
    """The context, where it is an image."""


@dataclass(frozen=True)
class Group:
    """A group of examples: active rows with `low <= |value| < high` on one side, and how many of them there are.

    `name` is "top", "q1" (weakest tenth) to "q10", "random" (any active row) or "near" (not active, though the token is
    one that the feature is otherwise active on; `low` and `high` are 0). The last tenth holds its upper end too.
    """

    name: str
    low: float
    high: float
    population: int


@dataclass(frozen=True)
class Neighbour:
    """Another feature, and how near it is.

    `score` is the decoder's cosine, or for co-activation the Jaccard index of the sets of active rows; `pearson` is
    the correlation of values over all encoded rows.
    """

    feature: int
    score: float
    jaccard: float | None = None
    pearson: float | None = None


@dataclass(frozen=True)
class Both:
    """Where two features are active: at the same token, and in the same context."""

    total_rows: int
    total_contexts: int
    examples: list[tuple[Example, Example]]
    """The same stretch seen by each, both peaks inside; the contexts in which the weaker is strongest come first."""


@dataclass(frozen=True)
class Hit:
    """A match of a search: `length` tokens from `position`."""

    seq: int
    position: int
    length: int


@dataclass(frozen=True)
class Similar:
    """A context and the cosine of its code with the one asked for."""

    seq: int
    score: float
