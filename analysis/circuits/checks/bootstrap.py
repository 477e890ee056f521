"""Bootstraps over examples: how much a figure hangs on which examples were drawn (Efron & Tibshirani 1993, ch. 6 and 13).

Percentile intervals of 95 %. Examples are the unit: prompts made from one template share words, which no bootstrap sees.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from sae.metrics import Interval

N_BOOTSTRAPS = 1000
"""Draws of an interval, unless told otherwise."""


def weights(n_examples: int, n_bootstraps: int, seed: int = 0) -> Float64[np.ndarray, "n_bootstraps n_examples"]:
    """How much each example counts in each draw of as many examples with replacement; a row sums to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_examples, np.full(n_examples, 1 / n_examples), size=n_bootstraps) / n_examples


def interval(
    statistic: Callable[[Float64[np.ndarray, "n_draws n_columns"]], Float64[np.ndarray, " n_draws"]],
    columns: Float64[np.ndarray, "n_examples n_columns"], *, n_bootstraps: int = N_BOOTSTRAPS, seed: int = 0,
) -> Interval:
    """A statistic of means over examples, with its interval.

    Args:
        statistic: of the means of the columns, for several draws at once.
        columns: what each example has.
        n_bootstraps: draws; none gives no interval.
        seed: of the draws; equal seeds draw the same examples for every statistic of as many.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = float(statistic(columns.mean(axis=0, keepdims=True))[0])
        if n_bootstraps == 0 or len(columns) < 2:
            return Interval(found)
        drawn = statistic(weights(len(columns), n_bootstraps, seed) @ columns)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(found, float(low), float(high))
