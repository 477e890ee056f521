"""Every variant at equal L0 on one synthetic world: hierarchy, correlated and bipolar features, noise.

Description length is in bits per row, at the coarsest step that costs 0.5 % of the variance (see
`analysis.mdl.description_length`).
"""

import numpy as np

from analysis.mdl.description_length import description_length
from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import N_ROWS, fit, measure
from analysis.reproduce.tables import Row
from training.activations.synthetic import DRAWN


def run(job: Job) -> list[Row]:
    """Train and measure."""
    sae, world, first = fit(job)
    figures, _ = measure(sae, world, first)
    blocks = np.arange(first // DRAWN, (first + N_ROWS) // DRAWN)
    return [{**figures, "bits": description_length(sae, world.rows("acts", blocks, DRAWN)).bits}]
