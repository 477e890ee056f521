"""Matryoshka against absorption, on a tree of features (Bussmann et al. 2503.17547, §4.1 and their figure 3).

Their claim: where children imply their parent, a plain SAE of as many features as the truth saves an activation by
letting the child's feature contain the parent, and the parent's falls silent; nested prefixes recover the tree. Recipe
as theirs where it is told: 20 orthogonal features in 20 dimensions, Adam 3e-2 with β (0.5, 0.9375), batches of 200, ten
prefixes drawn from a Pareto distribution, gradient clipped at 1. Their tree is not printed: here two trees of 1 + 3 + 6.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.matching import cosines, match
from analysis.render.figures.png import heat_maps
from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import fit, measure, ordered
from analysis.reproduce.tables import Row


def run(job: Job) -> list[Row]:
    """Train and measure."""
    figures, _ = measure(*fit(job))
    return [figures]


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """|cosine| of true features (down) and matched features of the SAE (across), one map a setting, of the first seed."""
    del rows
    maps = []
    for job in jobs:
        if job.seed == jobs[0].seed:
            sae, world, _ = fit(job)
            cosine = cosines(sae.W_dec, world.directions)
            maps.append(ordered(cosine, match(cosine)))
    heat_maps(out / "matryoshka-tree.png", maps)
