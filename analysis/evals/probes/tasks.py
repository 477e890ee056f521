"""Labelled examples for sparse probes, and probe scores.

An example is a row (token classes) or the mean over up to 64 rows of one document in one context (topics, as in SAEBench,
which averages over a whole context). Probes are fitted on examples of training documents and tested on held-out ones, each
class against all others. The score is balanced accuracy, ½ (TP / P + TN / N), so chance is ½ whatever the class balance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from analysis.evals.common.result import Units
from analysis.evals.probes.logistic import balanced, fit
from analysis.evals.probes.sparse import deviation, mean_difference, ranked, sparse_probe

STRETCH = 64
"""Maximum rows averaged into a topic's example."""
LEAST_FIT, LEAST_TEST = 12, 6
"""Minimum positive and negative examples of a class on the fitting and test sides."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples of one side of the split, over some rows.

    Attributes:
        rows: indices of the rows used.
        of_rows: scipy array `[n_examples, n_rows]` that averages rows into examples.
        label: class of each example, from 0.
        unit: document of each example, as an index into `units`.
        units: the documents.
    """

    rows: Int64[np.ndarray, " n_rows"]
    of_rows: Any
    label: Int64[np.ndarray, " n"]
    unit: Int64[np.ndarray, " n"]
    units: Units

    def __len__(self) -> int:
        return len(self.label)

    def mean(self, x: Float[Tensor, "n_rows d"]) -> Float[Tensor, "n d"]:
        """Average dense rows into examples."""
        return torch.from_numpy(self.of_rows @ x.double().numpy())


@dataclass(frozen=True)
class Task:
    """Labelled examples for fitting and for testing probes."""

    name: str
    classes: tuple[str, ...]
    """Classes with enough examples on both sides."""
    fit: Examples
    test: Examples

    def positive(self, examples: Examples) -> Bool[np.ndarray, "n n_classes"]:
        """Mask of examples by class."""
        return examples.label[:, None] == np.arange(len(self.classes))


def row_examples(
    label: Int64[np.ndarray, " n"], unit: Int64[np.ndarray, " n"], units: Units, most: int, seed: int
) -> Examples:
    """A random sample of at most `most` labelled rows (−1 is no label)."""
    rows = np.flatnonzero(label >= 0)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    return _examples(rows, np.arange(len(rows)), label[rows], unit[rows], units)


def stretch_examples(
    label: Int64[np.ndarray, " n"], document: Int64[np.ndarray, " n"], seq: Int64[np.ndarray, " n"],
    unit: Int64[np.ndarray, " n"], units: Units, most: int, seed: int,
) -> Examples:
    """A random sample of at most `most` stretches of up to 64 consecutive rows of one document and context."""
    rows = np.flatnonzero(label >= 0)
    place, doc = seq[rows], document[rows]
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = (place[1:] != place[:-1]) | (doc[1:] != doc[:-1])
    group = begins.cumsum() - 1
    first = np.flatnonzero(begins)
    begins |= (np.arange(len(rows)) - first[group]) % STRETCH == 0 if len(rows) else begins
    group = begins.cumsum() - 1
    chosen = np.random.default_rng(seed).permutation(int(begins.sum()))[:most]
    keep = np.isin(group, chosen)
    rows, (_, example) = rows[keep], np.unique(group[keep], return_inverse=True)
    head = np.unique(example, return_index=True)[1]
    return _examples(rows, example, label[rows][head], unit[rows][head], units)


def _examples(
    rows: Int64[np.ndarray, " n_rows"], example: Int64[np.ndarray, " n_rows"], label: Int64[np.ndarray, " n"],
    unit: Int64[np.ndarray, " n"], units: Units,
) -> Examples:
    from scipy.sparse import csr_array

    count = np.bincount(example, minlength=len(label))
    of_rows = csr_array((1 / count[example], (example, np.arange(len(rows)))), shape=(len(label), len(rows)))
    return Examples(rows, of_rows, label.astype(np.int64), unit.astype(np.int64), units)


def task(name: str, classes: Sequence[str], fit_on: Examples, test_on: Examples) -> Task | None:
    """A task over the classes with enough positive and negative examples; None if there are none."""
    sides = ((fit_on.label, LEAST_FIT), (test_on.label, LEAST_TEST))
    good = [c for c in range(len(classes)) if all(_enough(label == c, least) for label, least in sides)]
    if not good:
        return None
    # all other labels map to one index beyond the classes
    number = np.full(len(classes) + 1, len(good), dtype=np.int64)
    number[good] = np.arange(len(good))
    parts = [Examples(e.rows, e.of_rows, number[e.label], e.unit, e.units) for e in (fit_on, test_on)]
    return Task(name, tuple(classes[c] for c in good), *parts)


def _enough(positive: Bool[np.ndarray, " n"], least: int) -> bool:
    return int(positive.sum()) >= least and int((~positive).sum()) >= least


@dataclass(frozen=True)
class Score:
    """Score of one class's probe: per document, true positives, positives, true negatives, negatives."""

    sums: Float[np.ndarray, "n_units four"]
    features: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """Balanced accuracy."""
        return float(balanced_accuracy(self.sums.sum(0)[None])[0])


def balanced_accuracy(sums: Float[np.ndarray, "n_draws n_sums"]) -> Float[np.ndarray, " n_draws"]:
    """Mean over classes of ½ (TP / P + TN / N), from four sums per class."""
    tp, p, tn, n = (sums[:, i::4] for i in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((tp / p + tn / n).mean(1) / 2)


def score(
    right: Bool[np.ndarray, " n"], y: Bool[np.ndarray, " n"], examples: Examples
) -> Float[np.ndarray, "n_units four"]:
    """The four sums of one class, per document."""
    n = len(examples.units.id)
    events = (right & y, y, right & ~y, ~y)
    return np.stack([np.bincount(examples.unit, event, n) for event in events], 1).astype(np.float64)


def sparse_scores(
    task: Task, fitted: Any, tested: Any, ks: Sequence[int], *, scaled: bool = False
) -> dict[int, list[Score]]:
    """For each k, scores of k-sparse probes, one per class.

    Args:
        task: the task.
        fitted, tested: scipy arrays of codes `[n_rows, d_sae]`, of `task.fit.rows` and `task.test.rows`.
        ks: numbers of features.
        scaled: choose features by difference of means in units of standard deviations.
    """
    train, test = (part.of_rows @ codes for part, codes in ((task.fit, fitted), (task.test, tested)))
    train, test = train.tocsc(), test.tocsc()
    y, truth = task.positive(task.fit), task.positive(task.test)
    differences = mean_difference(train.tocsr(), y, np.ones_like(y)) / (deviation(train) if scaled else 1.0)
    out: dict[int, list[Score]] = {k: [] for k in ks}
    for c in range(len(task.classes)):
        order = ranked(differences[c], max(ks))
        for k in ks:
            probe = sparse_probe(train, y[:, c], order[:k])
            right = (probe.logits(test).numpy() > 0) == truth[:, c]
            out[k].append(Score(score(right, truth[:, c], task.test), tuple(order[:k].tolist())))
    return out


def dense_scores(task: Task, fitted: Float[Tensor, "n_fit d"], tested: Float[Tensor, "n_test d"]) -> list[Score]:
    """Scores of probes on the whole activation, as a skyline."""
    y, truth = task.positive(task.fit), task.positive(task.test)
    probes = fit(task.fit.mean(fitted), torch.from_numpy(y), balanced(torch.from_numpy(y)))
    right = (probes.logits(task.test.mean(tested)).numpy() > 0) == truth
    return [Score(score(right[:, c], truth[:, c], task.test)) for c in range(len(task.classes))]
