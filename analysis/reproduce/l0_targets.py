"""Do variants whose sparsity is a penalty reach the L0 they are asked for? On one stream of batches for each seed.

    relative error = held-out L0 / target − 1                reached: at most 5 %
"""

from analysis.reproduce.jobs import Job
from analysis.reproduce.tables import Row
from analysis.reproduce.together import figures, short_name, train_together

REACHED = 0.05
"""How far from the target L0 may be."""


def run(job: Job) -> list[Row]:
    """A row for each variant and target."""
    rows = []
    for config, trained in train_together(job):
        target = config.sae.sparsity.target_l0  # type: ignore[attr-defined]
        error = trained.summary["heldout"]["l0"] / target - 1
        told = {key: value for key, value in figures(trained).items() if key not in ("ce_recovered", "kl")}
        rows.append({
            "setting": short_name(config), "target": target, "relative_error": error,
            "reached": int(abs(error) <= REACHED), **told,
        })
    return rows
