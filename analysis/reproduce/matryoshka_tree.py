"""Matryoshka SAEs against absorption, on a tree of features (Bussmann et al. 2503.17547, §4.1 and figure 3).

Their claim: if children imply their parent, a plain SAE with the true number of features saves an activation by merging the
parent into the child's feature, and the parent's feature stops firing; nested prefixes recover the tree. The recipe is
theirs where stated: 20 orthogonal features in 20 dimensions, Adam 3e-2 with β (0.5, 0.9375), batches of 200, ten prefixes
drawn from a Pareto distribution, gradient clipped at 1. Their tree isn't given; here there are two trees of 1 + 3 + 6.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.matching import cosines, match
from analysis.render.figures.png import heat_maps
from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import fit, measure, ordered
from analysis.reproduce.tables import Row


def run(job: Job) -> list[Row]:
    """Train the job's SAE and measure it."""
    figures, _ = measure(*fit(job))
    return [figures]


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Draw |cosine| of true features (rows) and matched SAE features (columns), one map per setting, first seed."""
    del rows
    maps = []
    for job in jobs:
        if job.seed == jobs[0].seed:
            sae, world, _ = fit(job)
            cosine = cosines(sae.W_dec, world.directions)
            maps.append(ordered(cosine, match(cosine)))
    heat_maps(out / "matryoshka-tree.png", maps)
