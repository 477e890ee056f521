"""Absorption of known concepts: first letters of words, and parents in a synthetic hierarchy.

Four definitions with separate names (`absorption.score`): at best they rank dictionaries alike, and they differ by a factor
of ten. Each is the mean over concepts of the mean over the rows in which a probe on the activations correctly detects the
concept. Lower is better, but a dictionary without any feature for a concept absorbs nothing: read it together with the F1
of the main features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from analysis.evals.absorption.concepts import Absorption, Held, Labelled, held_concepts, measure
from analysis.evals.absorption.score import DEFINITIONS
from analysis.evals.absorption.words import list_words
from analysis.evals.common.context import Context
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.intervals import metric, plain
from analysis.evals.common.result import Found, Metric, PerFeature, Units
from sae.coder import Coder
from sae.errors import SaescopeError
from training.activations.synthetic import HOOK, Synthetic

FORMULAS = {
    "full": "full absorption, 2409.14507 by projection",
    "fraction_2503": "absorption fraction of SAEBench's paper, 2503.09532",
    "fraction_0.6": "absorption fraction of SAEBench's code, 0.6.0",
    "hierarchical": "absorption fraction of SAEBench 0.6.0 by features below the concept",
}
LEAST_CONCEPTS = 3


@dataclass(frozen=True)
class Settings:
    """Number of words, or of rows of a synthetic world."""

    n_words: int = 2016
    n_rows: int = 8192


@dataclass(frozen=True)
class _Prepared:
    kind: str
    unit: str
    labelled: Labelled
    concepts: list[Held]
    f1: dict[str, float]


def _prepare(context: Context, settings: Settings) -> _Prepared:
    """Labelled rows, and the concepts that can be probed in the activations.

    Raises:
        SaescopeError: there are no words, or too few concepts can be probed in the activations.
    """
    synthetic = context.corpus.config.corpus.synthetic is not None
    labelled = _parents(context, settings) if synthetic else _letters(context, settings)
    concepts, f1 = held_concepts(labelled)
    kind = "known hierarchy" if synthetic else "first letter"
    if len(concepts) < LEAST_CONCEPTS:
        best = max(f1.values(), default=0.0)
        raise SaescopeError(
            f"At {context.trained.site.output} a linear probe reaches an F1 of 0.6 for only {len(concepts)} of {len(f1)} "
            f"concepts ({kind}; the best has {best:.2f}): absorption needs concepts that the activations represent."
        )
    return _Prepared(kind, "row" if synthetic else "word", labelled, concepts, f1)


def _letters(context: Context, settings: Settings) -> Labelled:
    model, trained = context.model, context.trained
    words = list_words(model, settings.n_words, context.seed)
    parts: dict[str, list[torch.Tensor]] = {hook: [] for hook in trained.site.hooks}
    for number, some in enumerate(words.sequences.split(16)):
        acts = model.activations(some, trained.site.hooks)
        mine = (words.seq >= 16 * number) & (words.seq < 16 * (number + 1))
        at = torch.from_numpy(words.seq[mine] - 16 * number), torch.from_numpy(words.position[mine])
        for hook, found in acts.items():
            parts[hook].append(found[at].float())
    rows = trained.rows({hook: torch.cat(some) for hook, some in parts.items()})
    present = words.letter[:, None] == np.arange(26)
    # too few words for a probe
    often = present.sum(0) >= 10
    fitted = np.random.default_rng(context.seed).permutation(len(present)) % 2 == 0
    names = tuple(np.array(list(ascii_lowercase))[often].tolist())
    return Labelled(rows.x, rows.target, present[:, often], fitted, names)


def _parents(context: Context, settings: Settings) -> Labelled:
    world = context.corpus.data.source
    assert isinstance(world, Synthetic)
    parents = sorted(set(world.parents) - {-1})
    if not parents:
        raise SaescopeError("This synthetic world has no hierarchy (corpus.synthetic.depth), so there is no absorption.")
    n = settings.n_rows
    block = np.arange(n // 1024)
    x, truth = world.rows(HOOK, block, 1024), world.codes(block, 1024)
    present = truth.to_dense()[:, parents].numpy() != 0
    often = (present.sum(0) >= 40) & ((~present).sum(0) >= 40)
    names = tuple(f"feature {parent}" for parent, keep in zip(parents, often, strict=True) if keep)
    return Labelled(x, x, present[:, often], np.arange(len(x)) % 2 == 0, names)


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure absorption of each concept, and the means."""
    prepared = context.once("absorption", lambda: _prepare(context, settings))
    found = measure(prepared.labelled, prepared.concepts, coder)
    metrics = {name: _mean(found, name, prepared) for name in DEFINITIONS}
    n = len(found)
    metrics["main_features"] = plain(
        float(np.mean([len(one.main) for one in found])), unit="features", direction="lower",
        formula="main features of a concept (F1 jumps of 0.03)", n=n)
    metrics["main_f1"] = plain(
        float(np.mean([one.f1 for one in found])), unit="F1", direction="higher",
        formula="F1 of a sparse probe on the main features", n=n)
    details = [_record(one) for one in found]
    lost = [name for name in prepared.f1 if name not in {one.name for one in prepared.concepts}]
    notes = (f"Left out because a probe on the activations can't find them: {', '.join(lost)}.",) if lost else ()
    rows = prepared.labelled.present.shape[0]
    units = {"rows": Units(prepared.unit, np.arange(rows), np.ones(rows))}
    return Found({prepared.kind: metrics}, units, details, of_features(found, coder.d_sae), notes)


def of_features(found: list[Absorption], d_sae: int) -> dict[str, PerFeature]:
    """The concept of each main feature (the best-probed one if several), and its absorption."""
    told: list[str | None] = [None] * d_sae
    values = {name: np.full(d_sae, np.nan) for name in ("full", "fraction_0.6")}
    for one in sorted(found, key=lambda one: one.f1):
        for feature in one.main.tolist():
            told[feature] = one.concept.name
            for name, column in values.items():
                column[feature] = one.rows[name].mean()
    return {
        "absorbed_concept": PerFeature(
            tuple(told), "Stands for", "concept", "none", "the concept whose main feature it is, by a sparse probe"),
        "absorption": PerFeature(values["full"], "Absorbed", "share", "lower", f"{FORMULAS['full']}, of that concept"),
        "absorption_fraction": PerFeature(
            values["fraction_0.6"], "Fraction", "share", "lower", f"{FORMULAS['fraction_0.6']}, of that concept"),
    }


def _mean(found: list[Absorption], name: str, prepared: _Prepared) -> Metric:
    """Mean over concepts, with its interval over rows."""
    sums = np.zeros((len(prepared.labelled.present), 2 * len(found)))
    for i, one in enumerate(found):
        sums[one.concept.rows, 2 * i] = one.rows[name]
        sums[one.concept.rows, 2 * i + 1] = 1
    n_rows = (sums[:, 1::2].sum(1) > 0).astype(np.float64)
    return metric(_mean_of_means, sums, n_rows, unit="share", direction="lower", formula=FORMULAS[name])


def _mean_of_means(sums: Float[np.ndarray, "n_draws n_sums"]) -> Float[np.ndarray, " n_draws"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[:, ::2] / sums[:, 1::2]).mean(1))


def _record(one: Absorption) -> Mapping[str, Any]:
    return {
        "concept": one.concept.name, "probe_f1": one.concept.f1, "main_f1": one.f1, "n_rows": len(one.concept.rows),
        "main_features": one.main.tolist(), **{name: float(rows.mean()) for name, rows in one.rows.items()},
    }


EVALUATION = Evaluation(
    "absorption", "Absorption", 1, Settings(), Settings(n_words=6048, n_rows=32_768), run, per_feature=True,
    cost=(8.0, 25.0),
)
