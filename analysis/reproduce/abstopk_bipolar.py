"""AbsTopK on bipolar axes (Zhu et al. 2510.00404).

Their claim: TopK needs one feature per end of an axis, AbsTopK one for both. Each width is trained with both variants; the
table has FVE by width, and the share of features that use both signs (the rarer one in at least a tenth of the rows).
"""

from analysis.reproduce.jobs import Job
from analysis.reproduce.known_features import both_signs, fit, measure
from analysis.reproduce.tables import Row


def run(job: Job) -> list[Row]:
    """Train the job's SAE and measure it."""
    sae, world, first = fit(job)
    figures, code = measure(sae, world, first)
    used = code.counts() > 0
    return [{"d_sae": sae.d_sae, **figures, "both_signs": float(both_signs(code)[used].float().mean())}]
