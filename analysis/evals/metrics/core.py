"""Core metrics of a dictionary: reconstruction, sparsity, and the model's loss with the reconstruction spliced in.

On held-out kept rows t with reconstruction t̂ (`reconstruction`, `sparsity`, `strata`, `fidelity_at_bits`), and on held-out
tokens with t̂ in place of t (`model`):

    fve              1 − Σ‖t − t̂‖² / Σ‖t − mean t‖²                                     one mean per coordinate
    mse              Σ‖t − t̂‖² / rows, summed over coordinates; independent of batching
    cosine           of t and t̂ about the mean of the training rows
    l0               active features per row, of either sign; and of each sign
    dead, dense      share of features active in no row; in more than 10 % of rows, or 1 %
    fve by norm      1 − Σ‖t − t̂‖² / Σ‖t − mean t‖² over the rows in a quartile of norms, with the mean of all rows
    fve at bits      with values quantised so that the entropy code takes a given number of bits per row (`analysis.mdl`):
                     fidelity at equal description length, comparable across widths and L0s
    ce recovered     (CE ablated − CE spliced) / (CE ablated − CE clean), the target ablated to its training mean or to zero
    kl               KL(clean ‖ spliced)

SAEBench's core (2503.09532) differs: up to version 0.6 its explained variance uses the mean of squares for the mean, its
mse divides by the batch's tokens twice, and its densities count positive values only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from analysis.evals.common import intervals
from analysis.evals.common.context import CHUNK_ROWS, Context, Rows, TokenCosts
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.result import Found, Metric, PerFeature
from analysis.mdl.description_length import Encoded, quantise
from sae.code import SparseCode
from sae.coder import Coder
from sae.errors import SaescopeError
from sae.metrics import FVE, fve_of
from training.evaluate import DENSE

STRATA = ("low", "lower", "upper", "high")
SOME = 0.01
"""SAEBench's second density threshold."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    bits: tuple[int, ...] = (64, 128, 256, 512)
    """Description lengths, in bits per row, at which to report FVE."""


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure all metrics; without a model, those that need it are skipped, with a note."""
    rows, code = context.rows, context.code(coder)
    x_hat = reconstruction(coder, code)
    mean = context.trained.sae.target.mean.cpu()
    metrics: dict[str, Mapping[str, Metric]] = {
        "reconstruction": fidelity(rows, x_hat, mean), "sparsity": sparsity(rows, code), "strata": strata(rows, x_hat),
        "fidelity_at_bits": at_bits(rows, coder, code, settings.bits),
    }
    units = {"rows": rows.units}
    notes: tuple[str, ...] = ()
    try:
        costs = context.costs(coder)
    except SaescopeError as error:
        notes = (f"Cross-entropy and KL were not measured: {error}",)
    else:
        metrics["model"], units["tokens"] = behaviour(costs), costs.units
    density = code.counts().double().cpu().numpy() / len(rows)
    features = PerFeature(density, "Held-out density", "share", "none", "share of held-out rows it is active in")
    return Found(metrics, units, density_histogram(density), {"heldout_density": features}, notes)


def reconstruction(coder: Coder, code: SparseCode) -> Float[Tensor, "n d_out"]:
    """Reconstruction t̂ of a code's rows, on the CPU."""
    return coder.decode(code).cpu()


def fidelity(rows: Rows, x_hat: Float[Tensor, "n d_out"], mean: Float[Tensor, " d_out"]) -> dict[str, Metric]:
    """FVE, squared error, cosine about `mean`, and the ratio of norms about it."""
    target = rows.target.cpu()
    error = (target.double() - x_hat.double()).square().sum(1).numpy()
    turn, length = np.zeros(len(rows)), np.zeros((len(rows), 2))
    for start in range(0, len(rows), CHUNK_ROWS):
        here = slice(start, start + CHUNK_ROWS)
        t, t_hat = target[here] - mean, x_hat[here] - mean
        turn[here] = functional.cosine_similarity(t, t_hat).numpy()
        length[here] = torch.stack([t_hat.norm(dim=1), t.norm(dim=1)], dim=1).numpy()
    n = rows.units.n_rows
    return {
        "fve": fve(rows, x_hat, mean),
        "mse": intervals.ratio(rows.sums(error), n, n, unit="squared length per row", direction="lower",
                               formula="Σ‖t − t̂‖² / rows"),
        "cosine": intervals.ratio(rows.sums(turn), n, n, unit="cosine", direction="higher",
                                  formula="mean cosine of t and t̂ about the training mean"),
        "norm_ratio": intervals.ratio(rows.sums(length[:, 0]), rows.sums(length[:, 1]), n, unit="ratio", direction="none",
                                      formula="Σ‖t̂ − mean‖ / Σ‖t − mean‖, about the training mean"),
    }


def fve(rows: Rows, x_hat: Float[Tensor, "n d_out"], near: Float[Tensor, " d_out"]) -> Metric:
    """FVE of a reconstruction, with its interval; `near` is any point near the data."""
    sums = FVE(len(rows.units.id), near)
    sums.add(torch.from_numpy(rows.unit), rows.target, x_hat)
    return intervals.metric(fve_of, sums.sums(), rows.units.n_rows, unit="share", direction="higher",
                            formula="1 − Σ‖t − t̂‖² / Σ‖t − mean t‖²")


def sparsity(rows: Rows, code: SparseCode) -> dict[str, Metric]:
    """L0, in total and per sign, and shares of dead and dense features."""
    n, n_rows = rows.units.n_rows, len(rows)
    row = code.rows().cpu().numpy()
    signs = {"l0": code.value != 0, "l0_positive": code.value > 0, "l0_negative": code.value < 0}
    out = {
        name: intervals.ratio(
            rows.sums(np.bincount(row, which.cpu().numpy(), n_rows)), n, n, unit="features per row", direction="none",
            formula=f"mean number of features with a value {sign} 0",
        )
        for (name, which), sign in zip(signs.items(), ("≠", ">", "<"), strict=True)
    }
    density = code.counts().double().cpu() / n_rows
    shares = {
        "dead": (density == 0, "active in no held-out row", "lower"),
        "dense": (density > DENSE, f"active in more than {DENSE:.0%} of held-out rows", "none"),
        "dense_1": (density > SOME, f"active in more than {SOME:.0%} of held-out rows", "none"),
    }
    for name, (which, told, direction) in shares.items():
        out[name] = intervals.plain(
            float(which.double().mean()), unit="share", direction=direction,  # type: ignore[arg-type]
            formula=f"share of features {told}", n=code.d_sae)
    return out


def strata(rows: Rows, x_hat: Float[Tensor, "n d_out"]) -> dict[str, Metric]:
    """FVE by quartiles of the target's norm."""
    target = rows.target.cpu().double()
    norm = target.norm(dim=1).numpy()
    quarter = np.searchsorted(np.quantile(norm, (0.25, 0.5, 0.75)), norm, side="left")
    error = (target - x_hat.double()).square().sum(1).numpy()
    spread = (target - target.mean(0)).square().sum(1).numpy()
    out = {}
    for i, name in enumerate(STRATA):
        mine = quarter == i
        sums = np.stack([rows.sums(error * mine), rows.sums(spread * mine)], axis=1)
        out[f"fve_{name}_norm"] = intervals.metric(
            lambda total: 1 - total[:, 0] / total[:, 1], sums, rows.sums(mine.astype(np.float64)), unit="share",
            direction="higher", formula=f"FVE over quarter {i + 1} of ‖t‖, about the mean of all rows",
        )
    return out


def at_bits(rows: Rows, coder: Coder, code: SparseCode, budgets: tuple[int, ...]) -> dict[str, Metric]:
    """FVE with values quantised as finely as each budget of bits per row allows."""
    encoded = Encoded(coder, rows.x, rows.target, [code])
    mean = rows.target.cpu().float().mean(0)
    out = {}
    for budget in budgets:
        step = encoded.within_bits(float(budget))
        coarse = quantise(code, step) if step else code
        found = fve(rows, reconstruction(coder, coarse), mean)
        out[f"fve_{budget}"] = Metric(
            found.value, "share", "higher", f"FVE at {budget} bits per row (entropy code)", found.n, found.low, found.high,
            found.pseudo)
    return out


def behaviour(costs: TokenCosts) -> dict[str, Metric]:
    """Effect of the reconstruction on the model's predictions.

    CE recovered is undefined (None) if ablation doesn't raise CE: its 95 % interval over documents reaches 0.
    """
    n = costs.units.n_rows
    sums = {name: costs.sums(name) for name in costs.nats}

    def nats(name: str, over: Float[np.ndarray, " n_units"], direction: Any, formula: str) -> tuple[str, Metric]:
        return name, intervals.ratio(
            over, n, n, unit="nats per token", direction=direction, formula=formula, of="tokens")

    def recovered(ablated: str) -> Metric:
        cost = sums[ablated] - sums["clean"]
        found = intervals.ratio(
            sums[ablated] - sums["spliced"], cost, n, unit="share", direction="higher",
            formula=f"(CE {ablated}-ablated − CE spliced) / (CE {ablated}-ablated − CE clean)", of="tokens")
        # a model with random weights loses nothing by ablation, so there is nothing to recover
        _, per_token = nats("", cost, "none", "")
        harmless = per_token.low is not None and per_token.low <= 0
        return replace(found, value=None, low=None, high=None, pseudo=None) if harmless else found

    return {
        "ce_recovered_mean": recovered("mean"), "ce_recovered_zero": recovered("zero"),
        **dict([
            nats("kl", sums["kl"], "lower", "KL(clean ‖ spliced)"),
            nats("ce_added", sums["spliced"] - sums["clean"], "lower", "CE spliced − CE clean"),
            nats("ce_clean", sums["clean"], "none", "CE of the model by itself"),
            nats("ce_spliced", sums["spliced"], "lower", "CE with the reconstruction spliced in"),
            nats("ce_mean", sums["mean"], "none", "CE with the target ablated to its training mean"),
            nats("ce_zero", sums["zero"], "none", "CE with the target ablated to zero"),
        ]),
    }


def density_histogram(density: Float[np.ndarray, " d_sae"]) -> tuple[dict[str, Any], ...]:
    """Histogram of feature densities by half decades; dead features have their own bin."""
    fires = density[density > 0]
    edges = np.concatenate([[0.0], 10 ** np.arange(-5.5, 0.01, 0.5)])
    counts = np.histogram(fires, edges)[0]
    bins = [
        {"kind": "density", "from": float(low), "to": float(high), "features": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return ({"kind": "density", "from": 0.0, "to": 0.0, "features": int((density == 0).sum())}, *bins)


EVALUATION = Evaluation(
    "core", "reconstruction, sparsity and downstream loss", 2, Settings(),
    Settings((32, 64, 128, 256, 512, 1024)), run, per_feature=True,
    cost=(14.0, 60.0),
)
