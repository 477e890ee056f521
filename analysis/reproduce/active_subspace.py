"""Do features initialised in the active subspace stay alive? And what is the effective dimension of a block's outputs?

2508.16929: attention outputs have 99 % of their variance in about 60 % of their dimensions (MLP outputs and the residual
stream in 90 %). Most features of a wide SAE on them die, but almost none if directions are initialised in that subspace and
the optimiser is sparse Adam. Dimensions are measured on as many training sequences as calibration uses, redrawn for each
seed.
"""

import numpy as np

from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import figures, members, short_name, train_together
from analysis.reproduce.tables import Row
from sae.subspace import Subspace
from training.activations.calibration import KeepMask
from training.activations.harvest import open_data
from training.config.schema import Config
from training.display import Display

SHARES = (0.9, 0.99)


def run(job: Job) -> list[Row]:
    """One row per initialisation, or one per hook for the setting `spectra`."""
    if job.setting == "spectra":
        return spectra(members(job)[0], job.seed)
    return [{"setting": short_name(config), **_told(trained)} for config, trained in train_together(job)]


def _told(trained) -> Row:
    told = figures(trained)
    return {key: told[key] for key in ("dead", "fve", "l0", "ce_recovered", "tokens_per_cpu_s")}


def spectra(config: Config, seed: int) -> list[Row]:
    """Effective dimensions of each mask hook's rows, on training sequences drawn by the seed."""
    hooks = config.data.mask_hooks or config.site.hooks
    data = open_data(config, hooks, Display(quiet=True))
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": hooks}))
    training = data.tokens.sequences(held_out=False)
    chosen = np.random.default_rng(seed).permutation(training)[: config.data.n_calib]
    chosen.sort()
    keep = mask.keep(chosen, data.tokens.n_ctx)
    rows: list[Row] = []
    for hook in hooks:
        subspace = Subspace.of(data.source.rows(hook, chosen, data.tokens.n_ctx)[keep].float())
        d = len(subspace.variance)
        rows.append({
            "setting": hook, "d": d, **{f"dims_{share:g}": subspace.n_for(share) for share in SHARES},
            **{f"dims_{share:g}_of_d": subspace.n_for(share) / d for share in SHARES},
            "effective_rank": subspace.effective_rank(), "participation_ratio": subspace.participation_ratio(),
        })
    return rows
