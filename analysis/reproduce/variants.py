"""All variants at one L0 on one stream of batches for each seed: what each keeps, what it costs.

`bits` is the description length (`analysis.mdl.description_length`) of each one's codes with values as
coarse as half a per cent of the variance allows; `bits_equal` the same where all are coarsened to the distortion that
the worst of them reaches, so that they compare. Both are entropy codes, in bits per row.
"""

from analysis.corpus_rows import open_rows
from analysis.mdl.description_length import EPSILON, Encoded, compare
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import figures, short_name, train_together
from analysis.reproduce.tables import Row
from analysis.trained import open_trained


def run(job: Job) -> list[Row]:
    """A row for each variant."""
    done = train_together(job)
    x, target = open_rows(open_trained(done[0][1].run)).held_out()
    encoded = {short_name(config): Encoded(trained.sae, x, target) for config, trained in done}
    level, equal = compare(encoded)
    rows = []
    for config, trained in done:
        name = short_name(config)
        alone, at_level = encoded[name].within(encoded[name].fve - EPSILON), equal[name]
        rows.append({
            "setting": name, **figures(trained), "bits": alone.bits, "bits_bound": alone.bound,
            "bits_equal": None if at_level is None else at_level.bits, "fve_equal": level,
        })
    return rows
