"""Every variant at equal L0 on one synthetic world: hierarchy, correlated and bipolar features, noise.

Description length is in bits per row, at the coarsest step that costs at most 0.005 FVE (see
`analysis.mdl.description_length`).
"""

import numpy as np

from analysis.mdl.description_length import description_length
from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import N_ROWS, fit, measure
from analysis.reproduce.tables import Row
from training.activations.synthetic import DRAWN


def run(job: Job) -> list[Row]:
    """Train the job's SAE and measure it."""
    sae, world, first = fit(job)
    figures, _ = measure(sae, world, first)
    blocks = np.arange(first // DRAWN, (first + N_ROWS) // DRAWN)
    return [{**figures, "bits": description_length(sae, world.rows("acts", blocks, DRAWN)).bits}]
