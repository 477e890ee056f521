"""SAEs trained for description length (MDL) against the best of a TopK sweep at equal FVE, on a language model.

Goes beyond Ayonrinde, Pearce & Sharkey (2410.11179), who select by description length but don't train for it. All SAEs of a
seed train on one stream. Each is measured on the same held-out rows at several FVEs: bits of its entropy code at the
coarsest quantisation that keeps the FVE (`analysis.mdl.description_length`); empty if it doesn't reach it. The rows
`best-topk` and `best-mdl` are the minimum of each sweep, and `saved` the share of TopK's bits that MDL saves. Since a sweep
has few points, two SAEs may split the rows, which gives their mean FVE at their mean bits. `mdl-lm.svg` plots both against
FVE, with intervals over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.corpus_rows import open_rows
from analysis.mdl.description_length import EPSILON, Encoded
from analysis.render.figures.lines import Line, lines
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import figures, short_name, train_together
from analysis.reproduce.tables import Row, summary
from analysis.trained import open_trained
from sae.io.files import write_bytes

FVES = (0.78, 0.8, 0.82, 0.84, 0.86, 0.88)


def run(job: Job) -> list[Row]:
    """Train (or resume) and measure one seed's sweep."""
    levels = tuple(job.fields.get("fves", FVES))
    done = train_together(replace(job, fields={k: v for k, v in job.fields.items() if k != "fves"}))
    rows, target = open_rows(open_trained(done[0][1].run)).held_out()
    out: list[Row] = [
        {"setting": short_name(config), **figures(trained), **bits(Encoded(trained.sae, rows, target), levels)}
        for config, trained in done
    ]
    return out + best(out, levels)


def bits(encoded: Encoded, levels: tuple[float, ...]) -> Row:
    """An SAE's description length at its own FVE, and its bits at each FVE that it reaches."""
    own = encoded.within(encoded.fve - EPSILON)
    found = {fve: encoded.within(fve).bits if fve < encoded.fve else None for fve in levels}
    return {
        "n_features": own.n_features, "bits": own.bits, "adaptive": own.adaptive, "bound": own.bound,
        **{column(fve): length for fve, length in found.items()},
    }


def best(rows: list[Row], levels: tuple[float, ...]) -> list[Row]:
    """Fewest bits of each sweep at each FVE, and the share of TopK's bits that MDL saves."""
    least: dict[str, Mapping[str, float | None]] = {}
    for kind in ("topk", "mdl"):
        points = [
            point for row in rows if row["setting"].startswith(kind)
            for point in ((row["fve"] - EPSILON, row["bits"]), *((fve, row[column(fve)]) for fve in levels))
            if point[1] is not None
        ]
        least[kind] = {column(fve): least_bits(points, fve) for fve in levels}
    saved: dict[str, float | None] = {}
    for name, bits in least["mdl"].items():
        other = least["topk"][name]
        saved[name] = None if bits is None or other is None else 1 - bits / other
    return [{"setting": f"best-{kind}", **values} for kind, values in least.items()] + [{"setting": "saved", **saved}]


def least_bits(points: Sequence[tuple[float, float]], fve: float) -> float | None:
    """Fewest bits for an FVE, from (FVE, bits) points or mixtures of two; None if no point reaches the FVE."""
    above = [point for point in points if point[0] >= fve]
    below = [point for point in points if point[0] < fve]
    mixed = (low + (fve - a) / (b - a) * (high - low) for a, low in below for b, high in above)
    return min((*(bits for _, bits in above), *mixed), default=None)


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Plot the fewest bits of each sweep at each FVE that all seeds reach."""
    levels = tuple(jobs[0].fields.get("fves", FVES))
    n_seeds = len({job.seed for job in jobs})
    told = {(row["setting"], row["metric"]): row for row in summary(rows) if row["n_seeds"] == n_seeds}
    curves = []
    for kind, name in (("topk", "best of the TopK sweep"), ("mdl", "best of the MDL sweep")):
        points = {fve: told[key] for fve in levels if (key := (f"best-{kind}", column(fve))) in told}
        curves.append(Line(
            name, list(points), *([p[part] for p in points.values()] for part in ("mean", "low", "high")),
        ))
    picture = lines(curves, x_title="FVE of held-out rows", y_title="bits per row")
    write_bytes(out / "mdl-lm.svg", picture.encode())


def column(fve: float) -> str:
    """Column name of the bits at an FVE."""
    return f"bits_at_{fve:g}"
