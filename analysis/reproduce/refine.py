"""What do a few pursuit steps from the encoder's code gain, and what do they cost? (Kavukcuoglu et al. 1010.3467)

SAEs on SmolLM2's residual stream, trained on one stream of batches per seed. Held-out rows are encoded and refined by a
number of steps (`sae.refine`), keeping each row's number of active features. A setting is an SAE and a number of steps.

    us_per_row   CPU time over all threads, the smaller of two passes
    times        the same relative to the encoder alone
    kept         share of the encoder's active features that stay active
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
    """Train (or resume) one seed's SAEs, and measure each."""
    done = train_together(job)
    x = open_rows(open_trained(done[0][1].run)).held_out().x
    return [
        {"setting": f"{short_name(config)} {n}", **row}
        for config, trained in done for n, row in zip(STEPS, measured(trained.sae, x), strict=True)
    ]


def measured(sae: SAE, x: Float[Tensor, "n d"]) -> list[Row]:
    """One row per number of steps."""
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
    """Code of all rows, and the CPU seconds it took, after a warm-up."""
    seconds = []
    sae.encode(x[:64], refine=n_steps)
    for _ in range(2):
        began = time.process_time()
        code = stacked([sae.encode(chunk, refine=n_steps) for chunk in x.split(CHUNK_ROWS)])
        seconds.append(time.process_time() - began)
    return code, min(seconds)


def shared(code: SparseCode, other: SparseCode) -> float:
    """Share of a code's active features that are also active in another code of the same rows."""
    mine, theirs = (one.rows() * one.d_sae + one.feature for one in (code, other))
    return float(torch.isin(mine, theirs).float().mean())
