"""Bootstrap over examples: how much a score depends on the sampled examples (Efron & Tibshirani 1993, ch. 6 and 13).

95 % percentile intervals. Examples are the resampled unit; prompts from one template share words, which this ignores.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from sae.metrics import Interval

N_BOOTSTRAPS = 1000
"""Default number of bootstrap draws."""


def weights(n_examples: int, n_bootstraps: int, seed: int = 0) -> Float64[np.ndarray, "n_bootstraps n_examples"]:
    """Weights of examples in each bootstrap draw (n_examples drawn with replacement); rows sum to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_examples, np.full(n_examples, 1 / n_examples), size=n_bootstraps) / n_examples


def interval(
    statistic: Callable[[Float64[np.ndarray, "n_draws n_columns"]], Float64[np.ndarray, " n_draws"]],
    columns: Float64[np.ndarray, "n_examples n_columns"], *, n_bootstraps: int = N_BOOTSTRAPS, seed: int = 0,
) -> Interval:
    """A statistic of means over examples, with its bootstrap interval.

    Args:
        statistic: function of the column means, vectorised over draws.
        columns: values of each example.
        n_bootstraps: number of draws; 0 gives no interval.
        seed: seed of the draws; with equal seeds and numbers of examples, every statistic sees the same draws.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = float(statistic(columns.mean(axis=0, keepdims=True))[0])
        if n_bootstraps == 0 or len(columns) < 2:
            return Interval(found)
        drawn = statistic(weights(len(columns), n_bootstraps, seed) @ columns)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(found, float(low), float(high))
