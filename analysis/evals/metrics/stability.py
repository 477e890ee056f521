"""Which features does another seed find again, and how much of the reconstruction do those carry?

Features are matched one to one with those of each other seed so that the sum of the cosines of their decoder rows is
largest (the Hungarian method); of signed codes the cosine's size counts, of others its sign too. Over features that are
active in some held-out row:

    pw_mcc      the mean cosine of a feature with its match, over pairs of seeds (pairwise MCC, 2505.20254); 0 without one
    stable      share of features whose cosine, on average over the other seeds, is at least 0.7 (2501.16615)
    carried     FVE with only the stable features left to say something, as a share of the FVE of all; likewise CE recovered

A feature that is left out is held at its mean over the rows, so that only what it says about single rows is lost. The
same for random sets of as many features, which fire as often in the sum as chance will have it: what stable features carry
says something where it exceeds that. Of random directions `pw_mcc` is not 0: the control `random` tells what it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.evals.common import intervals
from analysis.evals.common.context import Context, Rows
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.result import Found, Metric, PerFeature, Units
from analysis.evals.common.seeds import other_seeds, weights_of
from analysis.evals.controls.cheap import random_sae
from analysis.evals.controls.trained import root_of
from analysis.evals.recovery import cosines, match
from analysis.trained import TrainedSAE
from sae import store
from sae.base import SAE
from sae.code import SparseCode
from sae.coder import Coder
from sae.errors import SaescopeError
from sae.metrics import FVE, fve_of
from training.memory import require

STABLE = 0.7


@dataclass(frozen=True)
class Settings:
    """How many seeds, and what is spliced in."""

    seeds: int = 2
    """Other seeds at most."""
    draws: int = 1
    """Random sets of features."""
    ce: bool = True
    """Whether what the stable features carry of the cross-entropy is measured too: a run of the model for each set."""


class Subset:
    """A coder of which only some features vary; the others are held at what they add on average."""

    def __init__(self, coder: Coder, features: Bool[Tensor, " d_sae"], code: SparseCode) -> None:
        """`code` is the coder's, of the rows that the average is over."""
        self.coder, self.features = coder, features
        self.offset = (coder.decode(code) - coder.decode(code.only(features))).mean(0)

    @property
    def d_sae(self) -> int:
        """Of the coder."""
        return self.coder.d_sae

    @property
    def W_dec(self) -> Tensor:
        """Of the coder."""
        return self.coder.W_dec

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """What these features say."""
        return self.coder.encode(x).only(self.features)

    def decode(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """With the average of the others."""
        return self.coder.decode(code) + self.offset


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Agreement between seeds; of the run itself also what stable features carry.

    Raises:
        SaescopeError: there is no other seed of this run.
    """
    own = coder is context.sae
    others = seeds(context, settings.seeds) if own else [_another_random(context, coder)]
    code = context.code(coder)
    found = np.stack([matched(context, coder, other) for other in others])
    cosine = found.mean(0)
    metrics: dict[str, Mapping[str, Metric]] = {"agreement": agreement(found, code)}
    units: Mapping[str, Units] = {}
    if own:
        stable = torch.from_numpy(np.nan_to_num(cosine) >= STABLE)
        metrics["carried"], units = carried(context, coder, stable, settings)
    features = PerFeature(
        cosine, "Stability", "cosine", "higher", f"decoder cosine with its match, mean over {len(found)} other seeds")
    return Found(metrics, units, (), {"seed_cosine": features})


def unfit(trained: TrainedSAE) -> str | None:
    """Runs without another seed."""
    if other_seeds(trained, root_of(trained)):
        return None
    return (
        f"{trained.folder.name} is the only seed of its training that is here; train it again with another sae.seed (and "
        "data.seed) and a name of its own."
    )


def facts(context: Context) -> Mapping[str, Any]:
    """The weights of the other seeds."""
    runs = other_seeds(context.trained, root_of(context.trained))
    return {"seeds": sorted(str(weights_of(run)) for run in runs)}


def seeds(context: Context, most: int) -> list[SAE]:
    """The SAEs of other seeds of this run.

    Raises:
        SaescopeError: there are none.
    """
    trained = context.trained
    runs = other_seeds(trained, root_of(trained))[:most]
    if not runs:
        raise SaescopeError(unfit(trained) or "")
    return [store.load(run, device=trained.sae.W_dec.device) for run in runs]


def _another_random(context: Context, coder: Coder) -> SAE:
    rows, sae = context.train_rows, context.trained.sae
    l0 = float(context.code(coder).n_active) / len(context.rows)
    return random_sae(sae, rows.x, rows.target, l0, context.seed + 1)


def matched(context: Context, coder: Coder, other: Coder) -> Float[np.ndarray, " d_sae"]:
    """The cosine of each feature with its match in another dictionary, 0 without one; NaN where it is never active."""
    codes = [context.code(one) for one in (coder, other)]
    live = [(code.counts() > 0).cpu() for code in codes]
    signed = any(bool((code.value < 0).any()) for code in codes)
    rows = [one.W_dec.detach().cpu()[alive] for one, alive in zip((coder, other), live, strict=True)]
    require(32 * len(rows[0]) * len(rows[1]), "matching the features of two seeds", "evaluate an SAE with fewer features")
    cosine = cosines(rows[1], rows[0])
    likeness = np.abs(cosine) if signed else cosine.clip(min=0)
    place = match(likeness)
    values = np.where(place >= 0, likeness[np.arange(len(place)), place], 0.0)
    out = np.full(coder.d_sae, np.nan)
    out[live[0].numpy()] = values
    return out


def agreement(found: Float[np.ndarray, "n_seeds d_sae"], code: SparseCode) -> dict[str, Metric]:
    """PW-MCC, and shares of stable features, of all and of activations."""
    live = np.isfinite(found[0])
    mass = code.sums(code.value.abs()).double().cpu().numpy()
    stable = np.nan_to_num(found.mean(0)) >= STABLE
    fires = code.counts().double().cpu().numpy()
    per_seed = np.nanmean(found, axis=1) if live.any() else np.zeros(len(found))
    low, high = _t_interval(per_seed)
    pairs = f"over {len(found)} other seed{'s' if len(found) > 1 else ''}"
    return {
        "pw_mcc": Metric(
            float(per_seed.mean()), "cosine", "higher", f"mean matched decoder cosine of live features, {pairs}",
            len(found), low, high),
        "pw_mcc_by_size": intervals.plain(
            float(np.average(np.nan_to_num(found.mean(0)), weights=mass)) if mass.sum() else None, unit="cosine",
            direction="higher", formula=f"matched decoder cosine weighted by Σ|value|, {pairs}", n=int(live.sum())),
        "stable": intervals.plain(
            float(stable[live].mean()) if live.any() else None, unit="share", direction="higher",
            formula=f"share of live features with a matched cosine of at least {STABLE:g}", n=int(live.sum())),
        "stable_activations": intervals.plain(
            float(fires[stable].sum() / fires.sum()) if fires.sum() else None, unit="share", direction="higher",
            formula="share of all activations that are of stable features", n=int(live.sum())),
    }


def carried(
    context: Context, coder: Coder, stable: Bool[Tensor, " d_sae"], settings: Settings
) -> tuple[dict[str, Metric], Mapping[str, Units]]:
    """What the stable features keep of FVE and CE recovered, and what random sets of as many do."""
    rows, code = context.rows, context.code(coder)
    sets = {"stable": [stable], "random": _random_sets(stable, (code.counts() > 0).cpu(), settings.draws, context.seed)}
    subsets = {name: [Subset(coder, features, code) for features in some] for name, some in sets.items()}
    whole = coder.decode(code).cpu()
    out = {
        f"fve_{name}": _mean_of([
            _share_of_fve(rows, one.decode(code.only(one.features)).cpu(), whole, name) for one in some
        ]) for name, some in subsets.items()
    }
    units = {"rows": rows.units}
    if settings.ce:
        try:
            costs = context.costs(coder)
            flat = [one for some in subsets.values() for one in some]
            spliced = iter(context.costs_spliced(flat))
        except SaescopeError:
            return out, units
        n, sums = costs.units.n_rows, {name: costs.sums(name) for name in costs.nats}
        for name, some in subsets.items():
            out[f"ce_{name}"] = _mean_of([
                intervals.ratio(
                    sums["mean"] - next(spliced).sums("spliced"), sums["mean"] - sums["spliced"], n, unit="share",
                    direction="higher" if name == "stable" else "none", of="tokens",
                    formula=f"CE recovered by {_TOLD[name]} / CE recovered by all, both against the mean",
                ) for _ in some
            ])
        units["tokens"] = costs.units
    return out, units


_TOLD = {"stable": "the stable features", "random": "random sets of as many live features"}


def _share_of_fve(rows: Rows, part: Float[Tensor, "n d_out"], whole: Float[Tensor, "n d_out"], name: str) -> Metric:
    """FVE of one reconstruction over that of another."""
    near, unit = rows.target.cpu().float().mean(0), torch.from_numpy(rows.unit)
    sums = []
    for x_hat in (part, whole):
        fve = FVE(len(rows.units.id), near)
        fve.add(unit, rows.target, x_hat)
        sums.append(fve.sums())
    d = sums[0].shape[1]
    return intervals.metric(
        lambda total: fve_of(total[:, :d]) / fve_of(total[:, d:]), np.concatenate(sums, axis=1), rows.units.n_rows,
        unit="share", direction="higher" if name == "stable" else "none",
        formula=f"FVE of {_TOLD[name]} / FVE of all; the others held at their mean")


def _mean_of(metrics: Sequence[Metric]) -> Metric:
    """The mean of several draws; the interval is the first's, moved there."""
    values = [one.value for one in metrics if one.value is not None]
    mean, first = float(np.mean(values)), metrics[0]
    if first.value is None or first.low is None or first.high is None or len(metrics) == 1:
        return first
    shift = mean - first.value
    pseudo = np.mean([one.pseudo for one in metrics if one.pseudo is not None], axis=0)
    return replace(first, value=mean, low=first.low + shift, high=first.high + shift, pseudo=pseudo)


def _random_sets(
    stable: Bool[Tensor, " d_sae"], live: Bool[Tensor, " d_sae"], draws: int, seed: int
) -> list[Bool[Tensor, " d_sae"]]:
    """Sets of as many live features as are stable."""
    rng, n = np.random.default_rng([seed, 7]), int(stable.sum())
    alive = np.flatnonzero(live.numpy())
    out = []
    for _ in range(draws):
        features = np.zeros(len(stable), dtype=bool)
        features[rng.permutation(alive)[:n]] = True
        out.append(torch.from_numpy(features))
    return out


def _t_interval(values: Float[np.ndarray, " n"]) -> tuple[float | None, float | None]:
    from sae.metrics import t_quantile

    if len(values) < 2:
        return None, None
    half = float(values.std(ddof=1)) / len(values) ** 0.5 * t_quantile(len(values) - 1)
    return float(values.mean()) - half, float(values.mean()) + half


EVALUATION = Evaluation(
    "stability", "what other seeds find again", 1, Settings(), Settings(seeds=4, draws=3), run, controls=("random",),
    unfit=unfit, per_feature=True, facts=facts, cost=(30.0, 120.0),
)
