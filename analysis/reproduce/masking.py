"""Does masking entries recover the true dictionary where the plain loss fits noise? (Chidambaram et al. 2302.12715)

Their claim: with noise and a dictionary wider than the truth, the minimum of the plain objective is not at the truth, but
that of the masked objective is. Their codes are from orthogonal matching pursuit; here from an encoder. Rows are sums of 3
of 32 directions in 32 dimensions plus Gaussian noise. Each seed's SAEs, plain and masked, train on one stream, over width
and noise. Names give variant, k, width and masked share: `topk-8-128-0.3`.

    mmc        mean over true directions of the largest |cosine| with a feature: recovery, ignoring extra features
    fve        of new rows, including noise; rows are encoded without masking
    fve_clean  of the same rows without their noise: the part of the reconstruction that isn't noise

`masking.svg` plots 1 − MMC, the recovery error, of both objectives against the noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from analysis.render.figures.lines import Line, lines
from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import N_ROWS, measure
from analysis.reproduce.shared_stream import short_name, train_together
from analysis.reproduce.tables import Row, summary
from sae.base import SAE
from sae.io.files import write_bytes
from sae.metrics import FVE
from sae.products import mix
from training.activations.synthetic import DRAWN, Synthetic
from training.config.reading import merged

DRAWN_AS = {
    "32-0": "plain, as wide as the truth", "32-0.3": "masked, as wide as the truth",
    "128-0": "plain, 4 times as wide", "128-0.3": "masked, 4 times as wide",
}
"""Curves of the plot by width and masked share, all TopK with k = 8."""


def run(job: Job) -> list[Row]:
    """Train one seed's SAEs at one noise level and measure each."""
    seeded = merged(dict(job.fields), {"corpus": {"synthetic": {"seed": job.seed}}})
    rows = []
    for config, trained in train_together(replace(job, fields=seeded)):
        assert config.corpus.synthetic is not None
        world, first = Synthetic(config.corpus.synthetic), -(-config.corpus.n_tokens // DRAWN) * DRAWN
        figures, _ = measure(trained.sae, world, first)
        told = {key: figures[key] for key in ("mmc", "f1", "l0", "fve", "dead")}
        rows.append({
            "setting": f"{job.setting} {short_name(config)}", "noise": config.corpus.synthetic.noise, **told,
            "fve_clean": fve_clean(trained.sae, world, first),
        })
    return rows


def fve_clean(sae: SAE, world: Synthetic, first: int, n_rows: int = N_ROWS) -> float:
    """FVE against noise-free rows, reconstructed from the noisy ones."""
    blocks = np.arange(first // DRAWN, (first + n_rows) // DRAWN)
    clean = mix(world.codes(blocks, DRAWN), world.directions)
    fve = FVE(1, clean.mean(0))
    fve.add(torch.zeros(n_rows, dtype=torch.int64), clean, sae(world.rows("acts", blocks, DRAWN)))
    return fve.value()


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Draw the plot: means over seeds with their intervals."""
    del jobs
    told = {row["setting"]: row for row in summary(rows) if row["metric"] == "mmc"}
    noise = {row["setting"]: row["noise"] for row in rows}
    curves = []
    for ending, name in DRAWN_AS.items():
        points = sorted((noise[s], row) for s, row in told.items() if s.endswith(f" topk-8-{ending}"))
        if points:
            mean, high, low = ([_missing(row[key]) for _, row in points] for key in ("mean", "low", "high"))
            curves.append(Line(name, [x for x, _ in points], mean, low, high))  # type: ignore[arg-type]
    picture = lines(
        curves, x_title="noise (root mean square norm; a feature has length 1)", y_title="1 − mean max cosine",
    )
    write_bytes(out / "masking.svg", picture.encode())


def _missing(mmc: float | None) -> float | None:
    return None if mmc is None else 1 - mmc
