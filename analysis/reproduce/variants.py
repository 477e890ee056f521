"""All variants at one L0 on one stream of batches per seed: reconstruction, and cost.

`bits` is the description length (`analysis.mdl.description_length`) of each variant's codes, quantised to cost at most
0.005 FVE; `bits_equal` is the same with all quantised down to the FVE of the worst, so that they can be compared. Both are
entropy codes, in bits per row.
"""

from analysis.corpus_rows import open_rows
from analysis.mdl.description_length import EPSILON, Encoded, compare
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import figures, short_name, train_together
from analysis.reproduce.tables import Row
from analysis.trained import open_trained


def run(job: Job) -> list[Row]:
    """One row per variant."""
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
