"""Does ICFL, unlike TopK, keep its features alive on whitened rows (Donhauser et al. 2412.16247)?

TopK and ICFL with the same number of active features, on SmolLM2's residual stream and on scikit-learn's digits, each on
plain rows (centred and scaled), on whitened rows, and on whitened rows scaled to unit norm, as in the paper. All SAEs of a
seed share one stream.

    topk, topk-no-auxk    with and without the auxiliary loss that revives dead features
    icfl                  `k` features in rounds of `per_round`
    icfl-frozen           control: the same over its random initial directions; only b_dec is trained

Metrics on held-out rows:

    fve, cosine           in the model's units, about the training mean
    fve_white             FVE in the whitened space, where every axis of the calibration rows has the same weight
    cosine_white          the paper's metric: mean cosine of whitened rows with their reconstruction
    silent                share of features not active in any held-out row;    `dead`: in the last rows of training
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
"""Transforms of the rows, by name."""
FIGURES = ("l0", "fve", "cosine", "dead", "silent")


def run(job: Job) -> list[Row]:
    """Train (or resume) and measure all SAEs of a setting; their weights are deleted."""
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
    """Changes to the base config, by name."""
    topk, icfl = {"variant": "topk", "k": k}, {"variant": "icfl", "rounds": k // per_round, "per_round": per_round}
    return {
        "topk": {"sae": topk}, "topk-no-auxk": {"sae": topk | {"auxk": {"coefficient": 0}}}, "icfl": {"sae": icfl},
        "icfl-frozen": {"sae": icfl, "optim": {"frozen": ["W_dec"]}},
    }


class White:
    """Held-out rows, and reconstruction metrics in the space whitened on the calibration rows."""

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
        """FVE and mean cosine in the whitened space."""
        z, z_hat = (self.transform.normalise(rows) for rows in (self.x, sae(self.x)))
        cosine = torch.nn.functional.cosine_similarity(z, z_hat, dim=1)
        unexplained = (z - z_hat).double().square().sum() / (z - z.mean(0)).double().square().sum()
        return {"fve_white": 1 - float(unexplained), "cosine_white": float(cosine.mean())}
