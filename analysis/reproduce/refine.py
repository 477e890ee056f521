"""What do a few steps of pursuit from the encoder's code bring, and what do they cost? (Kavukcuoglu et al. 1010.3467)

SAEs of one stream for each seed, at the residual stream of SmolLM2; their held-out rows are encoded, and refined by so many
steps (`sae.refine`), at the number of features that each row has. A setting is an SAE and a number of steps.

    us_per_row   CPU time, all threads together, the lesser of two passes
    times        the same, as a multiple of the encoder's
    kept         share of the encoder's active features that are still active
"""

import time

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.corpus_rows import open_rows
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import short_name, train_together
from analysis.reproduce.tables import Row
from analysis.trained import open_trained
from sae.base import SAE
from sae.code import SparseCode, stacked
from sae.metrics import FVE

STEPS = (0, 1, 3, 10)
CHUNK_ROWS = 2048


def run(job: Job) -> list[Row]:
    """Train one seed's SAEs, or go on with them, and measure each."""
    done = train_together(job)
    x = open_rows(open_trained(done[0][1].run)).held_out().x
    return [
        {"setting": f"{short_name(config)} {n}", **row}
        for config, trained in done for n, row in zip(STEPS, measured(trained.sae, x), strict=True)
    ]


def measured(sae: SAE, x: Float[Tensor, "n d"]) -> list[Row]:
    """A row for each number of steps."""
    rows: list[Row] = []
    first = None
    for n in STEPS:
        code, seconds = timed(sae, x, n)
        first = first or code
        fve = FVE(1, sae.target.mean)
        fve.add(torch.zeros(len(x), dtype=torch.int64), x, sae.decode(code))
        us = 1e6 * seconds / len(x)
        rows.append({
            "fve": fve.value(), "l0": float(code.n_active) / len(x), "kept": shared(first, code), "us_per_row": us,
            "times": us / rows[0]["us_per_row"] if rows else 1.0,
        })
    return rows


def timed(sae: SAE, x: Float[Tensor, "n d"], n_steps: int) -> tuple[SparseCode, float]:
    """The code of all rows, and the CPU seconds that it took, after some rows that are not counted."""
    seconds = []
    sae.encode(x[:64], refine=n_steps)
    for _ in range(2):
        began = time.process_time()
        code = stacked([sae.encode(chunk, refine=n_steps) for chunk in x.split(CHUNK_ROWS)])
        seconds.append(time.process_time() - began)
    return code, min(seconds)


def shared(code: SparseCode, other: SparseCode) -> float:
    """The share of a code's active features that are active in another one of the same rows."""
    mine, theirs = (one.rows() * one.d_sae + one.feature for one in (code, other))
    return float(torch.isin(mine, theirs).float().mean())
