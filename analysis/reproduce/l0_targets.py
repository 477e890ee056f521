"""Do variants whose sparsity is a penalty reach the L0 they are asked for? On one stream of batches for each seed.

A controller sees training rows. So what decides is the L0 of the finished SAE on many rows it was trained on, drawn
anew: its relative error is that L0 / target − 1, and it is `reached` at 5 % at most. Held-out rows are of other
documents, and of fewer: `heldout_error` is theirs. How far so few documents are from the mean of all is `spread`: the
standard deviation of the L0, relative to the target, over draws of as many documents from those trained on.
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
"""How far from the target L0 may be."""
N_ROWS, CHUNK_ROWS, DRAWS = 65_536, 4096, 400


def run(job: Job) -> list[Row]:
    """A row for each variant and target."""
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
    """Active features of each row."""
    return torch.cat([sae.encode(chunk).l0() for chunk in x.split(CHUNK_ROWS)]).double().numpy()


def spread(
    value: Float[np.ndarray, " n"], document: Int64[np.ndarray, " n"], n_documents: int, seed: int, draws: int = DRAWS
) -> float:
    """Standard deviation of the mean value of a row, over draws of `n_documents` documents without repetition."""
    found, of_row = np.unique(document, return_inverse=True)
    sums, n_rows = np.bincount(of_row, value), np.bincount(of_row)
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(len(found))[:n_documents] for _ in range(draws)]
    return float(np.std([sums[mine].sum() / n_rows[mine].sum() for mine in drawn]))
