"""Do variants with a sparsity penalty reach their target L0? On one stream of batches per seed.

A controller sees training rows, so the criterion is the finished SAE's L0 on a new sample of many training rows. Its
relative error is L0 / target − 1, and it counts as `reached` at up to 5 %. Held-out rows are from other, fewer documents;
`heldout_error` is their relative error. `spread` tells how much so few documents deviate: the standard deviation of L0,
relative to the target, over samples of the same number of training documents.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.corpus_rows import open_rows
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import figures, short_name, train_together
from analysis.reproduce.tables import Row
from analysis.trained import open_trained
from sae.base import SAE

REACHED = 0.05
"""Maximum relative error of L0 to count as reached."""
N_ROWS, CHUNK_ROWS, DRAWS = 65_536, 4096, 400


def run(job: Job) -> list[Row]:
    """One row per variant and target."""
    done = train_together(job)
    x, document, n_held_out = open_rows(open_trained(done[0][1].run)).training(N_ROWS, seed=job.seed)
    rows = []
    for config, trained in done:
        target = config.sae.sparsity.target_l0  # type: ignore[attr-defined]
        active = l0(trained.sae, x)
        told = {key: value for key, value in figures(trained).items() if key not in ("ce_recovered", "kl")}
        held = told.pop("l0")
        error = float(active.mean()) / target - 1
        rows.append({
            "setting": short_name(config), "target": target, "l0": float(active.mean()), "relative_error": error,
            "reached": int(abs(error) <= REACHED), "heldout_l0": held, "heldout_error": held / target - 1,
            "spread": spread(active, document, n_held_out, job.seed) / target, **told,
        })
    return rows


def l0(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[np.ndarray, " n"]:
    """L0 of each row."""
    return torch.cat([sae.encode(chunk).l0() for chunk in x.split(CHUNK_ROWS)]).double().numpy()


def spread(
    value: Float[np.ndarray, " n"], document: Int64[np.ndarray, " n"], n_documents: int, seed: int, draws: int = DRAWS
) -> float:
    """Standard deviation of the mean row value, over samples of `n_documents` documents without replacement."""
    found, of_row = np.unique(document, return_inverse=True)
    sums, n_rows = np.bincount(of_row, value), np.bincount(of_row)
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(len(found))[:n_documents] for _ in range(draws)]
    return float(np.std([sums[mine].sum() / n_rows[mine].sum() for mine in drawn]))
