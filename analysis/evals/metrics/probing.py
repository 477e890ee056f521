"""k-sparse probing on labels that need no download: Python token classes, topics, and labels of the user's corpus.

How well the k features with the largest difference of means separate a class from all others (Gurnee et al. 2305.01610;
SAEBench 2503.09532), on documents that neither the SAE nor the probe was trained on. A score alone means little: raw
channels and random dictionaries do well too, so look at the gap to the controls. The skyline is a probe on the whole
activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analysis.evals.common.context import Context, Rows, encoded
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.intervals import metric
from analysis.evals.common.result import Found, Metric, Metrics
from analysis.evals.probes.concepts import Labels, concepts
from analysis.evals.probes.documents import corpus_classes, topics_of
from analysis.evals.probes.python_text import CLASSES
from analysis.evals.probes.sparse import matrix
from analysis.evals.probes.tasks import (
    Examples,
    Score,
    Task,
    balanced_accuracy,
    dense_scores,
    row_examples,
    sparse_scores,
    stretch_examples,
    task,
)
from sae.coder import Coder
from sae.errors import SaescopeError
from training.corpus.tokens import Tokens
from training.model.token_bytes import token_bytes

CHOSEN_BY = {"accuracy": "difference of means", "scaled": "difference of means in standard deviations"}
"""How features are chosen. By difference of means, as in SAEBench and transformer-lens, a few large and dense features may
be chosen for every token class; in units of standard deviations, feature scale doesn't matter."""


@dataclass(frozen=True)
class Settings:
    """Numbers of features, examples and topics."""

    ks: tuple[int, ...] = (1, 2, 5)
    n_fit: int = 4000
    """Rows, or stretches of rows, for fitting the probes of a task."""
    n_test: int = 8000
    """Rows, or stretches of rows, for testing."""
    n_topics: int = 8
    """Maximum number of topics, most frequent first."""


def tasks_of(context: Context, settings: Settings) -> list[Task]:
    """Tasks that the corpus has labels for.

    Raises:
        SaescopeError: the corpus has no labels.
    """
    train, test = (context.data_of(rows).tokens for rows in (context.train_rows, context.rows))
    if train.tokens is None or test.tokens is None:
        raise SaescopeError(
            f"{context.trained.folder.name} was trained on activations without text, so its rows have no labels to probe "
            "for."
        )
    sides = ((context.train_rows, train, settings.n_fit), (context.rows, test, settings.n_test))
    found = [_token_task(context, sides), _topic_task(context, sides, settings.n_topics)]
    tasks = [one for one in found if one is not None]
    if not tasks:
        raise SaescopeError(
            f"The corpus of {context.trained.folder.name} has no labels to probe for: neither Python source nor documents "
            "that share a label; name the column that holds one (corpus.sources: label_field)."
        )
    return tasks


Side = tuple[Rows, Tokens, int]


def _token_task(context: Context, sides: tuple[Side, ...]) -> Task | None:
    pieces = token_bytes(context.model.tokenizer)
    examples = []
    for number, (rows, tokens, most) in enumerate(sides):
        seqs, place = np.unique(rows.seq, return_inverse=True)
        label = corpus_classes(tokens, pieces, seqs)[place, rows.position].astype(np.int64)
        examples.append(row_examples(label, rows.unit, rows.units, most, context.seed + number))
    return task("tokens", CLASSES, *examples)


def _topic_task(context: Context, sides: tuple[Side, ...], n_topics: int) -> Task | None:
    by_side = []
    for rows, tokens, most in sides:
        topics = topics_of(tokens)
        document = tokens.documents()[rows.seq, rows.position]
        by_side.append((rows, document, [topics[d] for d in document.tolist()], most))
    names = _commonest([topics for _, _, topics, _ in by_side], n_topics)
    number = {name: i for i, name in enumerate(names)}
    examples: list[Examples] = []
    for side, (rows, document, topics, most) in enumerate(by_side):
        # rows without one of these topics are negatives
        label = np.array([number.get(topic, len(names)) if topic is not None else len(names) for topic in topics])
        examples.append(stretch_examples(
            label.astype(np.int64), document, rows.seq, rows.unit, rows.units, most, context.seed + side))
    return task("topics", names, *examples) if names else None


def _commonest(sides: list[list[str | None]], n: int) -> list[str]:
    """The n most frequent topics, by the smaller of their counts on the two sides."""
    counts = [{t: topics.count(t) for t in set(topics) if t is not None} for topics in sides]
    shared = set(counts[0]) & set(counts[1])
    return sorted(shared, key=lambda t: (-min(count[t] for count in counts), t))[:n]


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure the balanced accuracy of k-sparse probes, averaged over each task's classes."""
    tasks = context.once("probing tasks", lambda: tasks_of(context, settings))
    metrics: dict[str, Mapping[str, Metric]] = {}
    details: list[Mapping[str, Any]] = []
    parts: list[Labels] = []
    for done, one in enumerate(tasks):
        fitted, tested = (matrix(encoded(coder, rows.x[part.rows])) for rows, part in
                          ((context.train_rows, one.fit), (context.rows, one.test)))
        metrics[one.name], records = scored(one, fitted, tested, settings.ks)
        details += records
        parts.append(labels_of(one, fitted, tested))
        context.progress((done + 1) / len(tasks))
    features = concepts(parts, "tokens and stretches of text", "probe_") if coder is context.sae else {}
    return Found(metrics, {"rows": context.rows.units}, details, features)


def skyline(context: Context, settings: Settings) -> Mapping[str, Metrics]:
    """Skyline: probes on whole activations."""
    tasks = context.once("probing tasks", lambda: tasks_of(context, settings))
    return {"activation probe": {
        one.name: known(one, context.train_rows.x[one.fit.rows], context.rows.x[one.test.rows], settings.ks)
        for one in tasks}}


def scored(
    one: Task, fitted: Any, tested: Any, ks: Sequence[int]
) -> tuple[dict[str, Metric], list[Mapping[str, Any]]]:
    """Metrics of one task, and a record per class and k.

    Args:
        one: the task.
        fitted, tested: scipy arrays of codes `[n_rows, d_sae]`, for the rows of its two sides.
        ks: numbers of features.
    """
    metrics: dict[str, Metric] = {}
    details: list[Mapping[str, Any]] = []
    for name, how in CHOSEN_BY.items():
        scores = sparse_scores(one, fitted, tested, ks, scaled=name == "scaled")
        for k, found in scores.items():
            metrics[f"{name}_k{k}"] = _metric(one, found, f"{k}-sparse probe, features by {how}")
            details += _records(one, found, k, name)
    return metrics, details


def labels_of(one: Task, fitted: Any, tested: Any) -> Labels:
    """A task's examples and classes, for per-feature results; arguments as in `scored`."""
    return Labels(
        one.classes, one.fit.of_rows @ fitted, one.positive(one.fit), one.test.of_rows @ tested, one.positive(one.test))


def known(
    one: Task, fitted: Float[Tensor, "n_fit d"], tested: Float[Tensor, "n_test d"], ks: Sequence[int]
) -> dict[str, Metric]:
    """Score of probes on whole activations, repeated for every k."""
    found = _metric(one, dense_scores(one, fitted, tested), "probe on the whole activation")
    return {f"{name}_k{k}": found for name in CHOSEN_BY for k in ks}


def _metric(one: Task, scores: list[Score], probe: str) -> Metric:
    sums = np.concatenate([score.sums for score in scores], 1)
    n_rows = np.bincount(one.test.unit, minlength=len(one.test.units.id)).astype(np.float64)
    return metric(
        balanced_accuracy, sums, n_rows, unit="share", direction="higher",
        formula=f"balanced accuracy of a {probe}, mean over {len(one.classes)} classes",
    )


def _records(one: Task, scores: list[Score], k: int, name: str) -> list[dict[str, Any]]:
    n_fit = one.positive(one.fit).sum(0)
    return [
        {"task": one.name, "class": label, "k": k, "chosen": name, "accuracy": score.accuracy,
         "features": list(score.features), "n_fit": int(n_fit[c]), "n_test": int(score.sums[:, 1].sum())}
        for c, (label, score) in enumerate(zip(one.classes, scores, strict=True))
    ]


EVALUATION = Evaluation(
    "probing", "Sparse probing", 1, Settings(), Settings(n_fit=12_000, n_test=16_000, n_topics=16), run, references=skyline,
    per_feature=True, cost=(6.0, 20.0),
)
