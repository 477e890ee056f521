"""Does ICFL keep its features alive where rows are whitened, and TopK not (Donhauser et al. 2412.16247)?

TopK and ICFL with as many active features, on SmolLM2's residual stream and on scikit-learn's digits, each on plain rows
(centred and scaled), on whitened ones, and on whitened ones of one length, as in the paper. All of a seed share one stream.

    topk, topk-no-auxk    with the auxiliary loss that revives dead features, and without
    icfl                  `k` features in rounds of `per_round`
    icfl-frozen           the control: the same over the random directions it begins with, of which only b_dec learns

What each leaves, on held-out rows:

    fve, cosine           in the model's units, about the training mean
    fve_white             the same FVE in the whitened space, where every axis of the calibration rows counts alike
    cosine_white          the paper's: mean cosine of whitened rows with their reconstruction
    silent                features that are not active in any held-out row;    `dead`: in the last rows of training
"""

import shutil
from dataclasses import replace
from typing import Any

import torch

from analysis.reproduce.jobs import Job
from analysis.reproduce.mdl_digits import digits_folder
from analysis.reproduce.shared_stream import figures, short_name, train_together
from analysis.reproduce.tables import Row
from sae.base import SAE
from sae.transform import TransformConfig
from training.activations.calibration import KeepMask, calibrate
from training.activations.harvest import open_data, open_heldout
from training.config.reading import merged
from training.config.schema import Config
from training.display import Display
from training.evaluate import HeldOut

ROWS: dict[str, dict[str, Any]] = {
    "plain": {}, "white": {"whiten": True}, "white-unit": {"whiten": True, "unit_rows": True},
}
"""How rows are transformed, by name."""
FIGURES = ("l0", "fve", "cosine", "dead", "silent")


def run(job: Job) -> list[Row]:
    """All SAEs of a setting, trained or taken up again and measured; their weights are not kept."""
    fields = dict(job.fields)
    k, per_round = int(fields.pop("k")), int(fields.pop("per_round"))
    if fields.pop("digits", False):
        fields = merged(fields, {"corpus": {"sources": f"acts:{digits_folder(job)}"}})
    sweep = [
        merged(saes, {"name": f"{name}-{rows}", "sae": {"transform": transform}})
        for rows, transform in ROWS.items() for name, saes in contestants(k, per_round).items()
    ]
    done = train_together(replace(job, fields=fields | {"sweep": sweep}))
    white = White(done[0][0])
    found = [
        {"setting": f"{job.setting} {short_name(config)}",
         **{key: value for key, value in figures(trained).items() if key in FIGURES}, **white.measured(trained.sae),
         "tokens_per_cpu_s": figures(trained)["tokens_per_cpu_s"]}
        for config, trained in done
    ]
    shutil.rmtree(job.folder)
    return found


def contestants(k: int, per_round: int) -> dict[str, dict[str, Any]]:
    """By name, what differs from the base config."""
    topk, icfl = {"variant": "topk", "k": k}, {"variant": "icfl", "rounds": k // per_round, "per_round": per_round}
    return {
        "topk": {"sae": topk}, "topk-no-auxk": {"sae": topk | {"auxk": {"coefficient": 0}}}, "icfl": {"sae": icfl},
        "icfl-frozen": {"sae": icfl, "optim": {"frozen": ["W_dec"]}},
    }


class White:
    """Held-out rows, and how near reconstructions are where all axes of the calibration rows have the same variance."""

    def __init__(self, config: Config) -> None:
        hooks, display = config.site.hooks, Display(quiet=True)
        data = open_data(config, hooks, display)
        mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": hooks}))
        whiten = TransformConfig(whiten=True)
        self.transform = calibrate(config.site, mask).under(whiten, cross=False).input
        held = open_heldout(config, data, display)
        rows = HeldOut(held.source, held.tokens, mask, hooks, config.eval.n_rows)
        self.x = rows.acts[config.site.input].float()

    @torch.no_grad()
    def measured(self, sae: SAE) -> Row:
        """FVE and mean cosine there."""
        z, z_hat = (self.transform.normalise(rows) for rows in (self.x, sae(self.x)))
        cosine = torch.nn.functional.cosine_similarity(z, z_hat, dim=1)
        unexplained = (z - z_hat).double().square().sum() / (z - z.mean(0)).double().square().sum()
        return {"fve_white": 1 - float(unexplained), "cosine_white": float(cosine.mean())}
