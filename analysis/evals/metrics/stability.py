"""Stability across seeds: which features do other seeds find again, and how much of the reconstruction do they carry?

Features are matched one to one with those of each other seed, maximising the sum of decoder cosines (Hungarian algorithm);
signed codes use |cosine|, unsigned ones the cosine. Over features that are active in some held-out row:

    pw_mcc      mean cosine of a feature with its match, over pairs of seeds (pairwise MCC, 2505.20254); 0 without a match
    stable      share of features whose cosine, averaged over the other seeds, is at least 0.7 (2501.16615)
    carried     FVE with only the stable features varying, as a share of the FVE of all features; likewise CE recovered

Features left out are held at their mean over the rows, so only their row-specific information is lost. The baseline is
random sets with the same number of features; only what stable features carry beyond that is meaningful. `pw_mcc` isn't 0
for random directions; see the control `random`.
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
    """Numbers of seeds and random sets, and whether to measure cross-entropy."""

    seeds: int = 2
    """Maximum number of other seeds."""
    draws: int = 1
    """Number of random feature sets."""
    ce: bool = True
    """Whether to measure CE recovered by the stable features too; costs one run of the model per set."""


class Subset:
    """A coder in which only some features vary; the others contribute their average."""

    def __init__(self, coder: Coder, features: Bool[Tensor, " d_sae"], code: SparseCode) -> None:
        """`code` is the coder's code of the rows to average over."""
        self.coder, self.features = coder, features
        self.offset = (coder.decode(code) - coder.decode(code.only(features))).mean(0)

    @property
    def d_sae(self) -> int:
        """The coder's number of features."""
        return self.coder.d_sae

    @property
    def W_dec(self) -> Tensor:
        """The coder's decoder."""
        return self.coder.W_dec

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """Encode with these features only."""
        return self.coder.encode(x).only(self.features)

    def decode(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """Decode, adding the average contribution of the other features."""
        return self.coder.decode(code) + self.offset


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure agreement between seeds and, for the run itself, what stable features carry.

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
    """Reject runs without another seed."""
    if other_seeds(trained, root_of(trained)):
        return None
    return (
        f"{trained.folder.name} is the only seed of its training; train it again with another sae.seed (and data.seed) and "
        "another name."
    )


def facts(context: Context) -> Mapping[str, Any]:
    """Weight hashes of the other seeds."""
    runs = other_seeds(context.trained, root_of(context.trained))
    return {"seeds": sorted(str(weights_of(run)) for run in runs)}


def seeds(context: Context, most: int) -> list[SAE]:
    """Load the SAEs of other seeds of this run.

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
    """Cosine of each feature with its match in another dictionary; 0 without a match, NaN if it is never active."""
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
    """PW-MCC, and the share of stable features and of their activations."""
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
    """FVE and CE recovered by the stable features and by random sets of the same size, relative to all features."""
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
    """Ratio of the FVEs of two reconstructions."""
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
    """Mean over several draws; the interval is the first draw's, shifted to the mean."""
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
    """Random sets of live features, of the same size as the stable set."""
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
    "stability", "stability across seeds", 1, Settings(), Settings(seeds=4, draws=3), run, controls=("random",),
    unfit=unfit, per_feature=True, facts=facts, cost=(30.0, 120.0),
)
