"""MDL trained for its description length, against the best of a TopK sweep at equal distortion, on a language model.

Beyond Ayonrinde, Pearce & Sharkey (2410.11179), who select but do not train by description length. All SAEs of a seed
train on one stream. Each is measured on the same held-out rows at several FVEs: the bits of its entropy code at the
coarsest quantisation that keeps that FVE (`sae.description`), and nothing where it does not reach it. The rows
`best-topk` and `best-mdl` are the least of each sweep, and `saved` the share of TopK's bits that MDL does without.
"""

from collections.abc import Mapping

from analysis.mdl import heldout_rows
from analysis.reproduce.jobs import Job
from analysis.reproduce.tables import Row
from sae.description import Encoded
from training.config import merged, resolve
from training.run import train

FVES = (0.78, 0.8, 0.82, 0.84, 0.86, 0.88)


def run(job: Job) -> list[Row]:
    """Train one seed's sweep, or go on with it, and measure it."""
    fields = dict(job.fields)
    levels = tuple(fields.pop("fves", FVES))
    seeds = {"name": job.folder.name, "data": {"seed": job.seed}, "sae": {"seed": job.seed}}
    configs = resolve(merged(fields, seeds), where=job.folder.name)
    trained = train(configs, runs=job.folder.parent, resume=True, quiet=job.quiet)
    rows, target = heldout_rows(configs[0])
    out: list[Row] = []
    for one in trained:
        name = one.folder.name
        out.append({"setting": name, **figures(Encoded(one.sae, rows, target), levels),
                    "dead": one.summary["dead"]["share"]})
    return out + best(out, levels)


def figures(encoded: Encoded, levels: tuple[float, ...]) -> Row:
    """An SAE's own figures, and its bits at each FVE that it reaches."""
    found = {fve: encoded.within(fve) if fve < encoded.fve else None for fve in levels}
    own = encoded.within(encoded.fve - 0.005)
    return {
        "fve": encoded.fve, "l0": sum(float(c.n_active) for c in encoded.codes) / own.n_rows, "bits": own.bits,
        "adaptive": own.adaptive, "bound": own.bound, "n_features": own.n_features,
        **{column(fve): None if length is None else length.bits for fve, length in found.items()},
    }


def best(rows: list[Row], levels: tuple[float, ...]) -> list[Row]:
    """The least bits of each sweep at each FVE, and what MDL saves of TopK's."""
    least: dict[str, Mapping[str, float | None]] = {}
    for kind in ("topk", "mdl"):
        of_kind = [row for row in rows if row["setting"].startswith(kind)]
        least[kind] = {
            column(fve): min((row[column(fve)] for row in of_kind if row[column(fve)] is not None), default=None)
            for fve in levels
        }
    saved: dict[str, float | None] = {}
    for name, bits in least["mdl"].items():
        other = least["topk"][name]
        saved[name] = None if bits is None or other is None else 1 - bits / other
    return [{"setting": f"best-{kind}", **values} for kind, values in least.items()] + [{"setting": "saved", **saved}]


def column(fve: float) -> str:
    """The name of the bits at an FVE."""
    return f"bits_at_{fve:g}"
