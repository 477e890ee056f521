"""Recovery of known features, for runs on synthetic worlds (`corpus.synthetic`).

First, two dictionaries with known results are measured:

    oracle      the true directions with the true codes: F1, Matthews correlation and cosine are 1, absorption is 0
    permuted    the true directions, each with the code of another feature: cosine is 1; F1 and correlation are at chance

If these are off, the measurement is broken, which is an error. Metrics of the dictionary, from `analysis.evals.recovery`:

    f1, matthews, mmc, absorption    over the true features that occur, matched one to one; unmatched ones count as 0
    mcc                              mean |cosine| of the matched pairs (mean correlation coefficient, 2411.13117)
    f1_of_features                   over live features: F1 with the nearest true feature (SynthSAEBench)
    unique                           share of live features whose nearest true feature isn't shared with another live one

If the world has more features than the SAE (SynthSAEBench: 16,384 for 4,096), not all can be recovered: then `mcc` and
`f1_of_features` measure what was found, and `f1` also what was missed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.evals.common import intervals
from analysis.evals.common.context import Context, Rows
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.result import Direction, Found, Metric, Metrics, PerFeature
from analysis.evals.recovery import cosines, f1_score, match, recovery, support
from analysis.trained import TrainedSAE
from sae.code import SparseCode, stacked
from sae.coder import Coder
from sae.errors import SaescopeError
from training.activations.synthetic import Synthetic

CLOSE = 1e-9
CHANCE = 0.1
"""How far the permuted dictionary's metrics may be from those of independent events."""
MANY = 20
"""With fewer features, chance is too noisy to check."""


@dataclass(frozen=True)
class Settings:
    """No settings."""


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure recovery of the world's features.

    Raises:
        SaescopeError: the run was not trained on a synthetic world.
    """
    del settings
    world, truth = known(context)
    metrics, features = scored(world, truth, coder.W_dec.detach().cpu(), context.code(coder))
    return Found(metrics, features=features)


def references(context: Context, settings: Settings) -> Mapping[str, Metrics]:
    """Metrics of the two dictionaries with known results."""
    del settings
    world, truth = known(context)
    return {
        "oracle": scored(world, truth, world.directions, truth)[0],
        "permuted-decoder": scored(world, truth, permuted(world.directions), truth)[0],
    }


def known(context: Context) -> tuple[Synthetic, SparseCode]:
    """A run's world and the true code of its held-out rows, after checking the two known dictionaries.

    Raises:
        SaescopeError: as `world_of`.
    """
    def made() -> tuple[Synthetic, SparseCode]:
        world = world_of(context)
        truth = true_code(world, context.rows, context.corpus.n_ctx)
        check(world, truth)
        return world, truth

    return context.once("known features", made)


def unfit(trained: TrainedSAE) -> str | None:
    """Reject runs that weren't trained on a synthetic world."""
    if trained.config.corpus.synthetic is not None:
        return None
    return (
        f"{trained.folder.name} was trained on activations whose true features are unknown; train the same variant on a "
        "synthetic world (configs/synthetic-world.yaml) and evaluate that run."
    )


def world_of(context: Context) -> Synthetic:
    """The world a run was trained on.

    Raises:
        SaescopeError: it wasn't trained on a synthetic world.
    """
    synthetic = context.trained.config.corpus.synthetic
    if synthetic is None:
        raise SaescopeError(unfit(context.trained) or "")
    return Synthetic(synthetic)


def true_code(world: Synthetic, rows: Rows, n_ctx: int) -> SparseCode:
    """The true code of some rows."""
    number = rows.seq * n_ctx + rows.position
    code = stacked([world.codes(np.array([seq]), n_ctx) for seq in np.unique(rows.seq)])
    first = {int(seq): i * n_ctx for i, seq in enumerate(np.unique(rows.seq))}
    place = torch.tensor([first[int(seq)] for seq in rows.seq]) + torch.from_numpy(number - rows.seq * n_ctx)
    return taken(code, place)


def taken(code: SparseCode, rows: Int64[Tensor, " n"]) -> SparseCode:
    """Select rows of a CSR code, in the given order."""
    assert code.indptr is not None
    counts = code.indptr.diff()[rows]
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    within = torch.arange(int(indptr[-1])) - indptr[:-1].repeat_interleave(counts)
    place = code.indptr[rows].repeat_interleave(counts) + within
    return SparseCode(code.feature[place], code.value[place], len(rows), code.d_sae, indptr=indptr)


def permuted(directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Directions in a fixed order in which none keeps its place."""
    return directions[torch.from_numpy(shuffled(len(directions)))]


def shuffled(n: int) -> Int64[np.ndarray, " n"]:
    """A permutation without fixed points: a single cycle."""
    cycle = np.random.default_rng(0).permutation(n)
    order = np.empty(n, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def check(world: Synthetic, truth: SparseCode) -> None:
    """Assert that the two known dictionaries have their expected metrics."""
    found = recovery(world.directions, truth, world.directions, truth, world.parents)
    assert all(value is not None and abs(value - 1) < CLOSE for value in (found.f1, found.mcc, found.mmc)), found
    assert found.absorption is None or found.absorption < CLOSE, found
    if truth.d_sae < MANY:
        return
    swapped = recovery(permuted(world.directions), truth, world.directions, truth, world.parents)
    expected = chance(truth)
    assert swapped.mmc is not None and abs(swapped.mmc - 1) < 1e-6, swapped
    assert swapped.f1 is not None and abs(swapped.f1 - expected) < CHANCE, (swapped, expected)
    assert swapped.mcc is not None and abs(swapped.mcc) < CHANCE, swapped


def chance(truth: SparseCode) -> float:
    """Expected F1 of the permuted dictionary if features were independent: 2 p q / (p + q)."""
    p = truth.counts().double().numpy() / truth.n_rows
    order = shuffled(len(p))
    of_match = np.empty(len(order))
    # a direction's new index is the feature its code comes from
    of_match[order] = p
    both = np.divide(2 * p * of_match, p + of_match, out=np.zeros_like(p), where=p + of_match > 0)
    return float(both[p > 0].mean())


def scored(
    world: Synthetic, truth: SparseCode, directions: Float[Tensor, "d_sae d"], code: SparseCode
) -> tuple[Metrics, dict[str, PerFeature]]:
    """All metrics, and each feature's cosine and F1 with its nearest true feature."""
    found = recovery(directions, code, world.directions, truth, world.parents)
    cosine = cosines(directions, world.directions)
    place = match(cosine)
    pairs = np.abs(cosine)[np.flatnonzero(place >= 0), place[place >= 0]]
    n_there, n_live = int((truth.counts() > 0).sum()), int((code.counts() > 0).sum())
    nearest, f1 = nearest_f1(cosine, truth, code)
    live = np.isfinite(f1)
    unique = len(np.unique(nearest[live])) / max(1, n_live)

    def plain(value: float | None, direction: Direction, formula: str, n: int, unit: str = "share") -> Metric:
        return intervals.plain(value, unit=unit, direction=direction, formula=formula, n=n)

    recovered = {
        "f1": plain(found.f1, "higher", "2 TP / (2 TP + FP + FN), mean over true features, matched one to one", n_there),
        "matthews": plain(found.mcc, "higher", "Matthews' correlation of the same two events", n_there, "correlation"),
        "mmc": plain(found.mmc, "higher", "max |cosine| over the dictionary, mean over true features", n_there, "cosine"),
        "absorption": plain(
            found.absorption, "lower", "share of rows of child and parent in which the child's match stands for both "
            "(after 2409.14507, against truth)", n_there),
        "mcc": plain(float(pairs.mean()), "higher", "mean |cosine| of matched pairs (2411.13117)", len(pairs), "cosine"),
        "f1_of_features": plain(
            float(f1[live].mean()) if n_live else None, "higher", "F1 of each live feature with the true one nearest to it",
            n_live),
        "unique": plain(unique, "higher", "share of live features whose nearest true one no other has", n_live),
    }
    true_l0, l0 = float(truth.n_active) / truth.n_rows, float(code.n_active) / code.n_rows
    sparsity = {
        "l0": plain(l0, "none", "active features per row", code.n_rows, "features per row"),
        "true_l0": plain(true_l0, "none", "features present per row", code.n_rows, "features per row"),
    }
    return {"recovery": recovered, "sparsity": sparsity}, {
        "true_cosine": PerFeature(
            np.abs(cosine).max(0), "True cosine", "cosine", "higher", "|cosine| with the true feature nearest to it"),
        "true_f1": PerFeature(f1, "True F1", "share", "higher", "F1 with the true feature nearest to it"),
    }


def nearest_f1(
    cosine: Float[np.ndarray, "n_features d_sae"], truth: SparseCode, code: SparseCode
) -> tuple[Int64[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """Each feature's nearest true feature and F1 with it; NaN if the feature is never active."""
    there, active = support(truth), support(code)
    nearest = np.abs(cosine).argmax(0)
    both = np.asarray(there[:, nearest].multiply(active).sum(0)).reshape(-1)
    n_there, n_active = (np.asarray(one.sum(0)).reshape(-1) for one in (there, active))
    f1 = np.full(len(nearest), np.nan)
    for i in np.flatnonzero(n_active):
        f1[i] = f1_score(float(both[i]), float(n_there[nearest[i]]), float(n_active[i]))
    return nearest.astype(np.int64), f1


EVALUATION = Evaluation(
    "ground-truth", "recovery of known features", 1, Settings(), Settings(), run, references=references, cost=(3.0, 6.0),
    unfit=unfit, per_feature=True,
    controls=("random", "pca", "channels", "frozen-decoder", "frozen-encoder"),
)

