"""A user's labelled dataset: rows of text and label, balanced over classes, half for fitting probes.

Sampling and split depend only on the hash of each text: row order and file locations don't matter, duplicate texts count
once, and a smaller sample is a subset of a larger one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappush, heappushpop

import numpy as np
from jaxtyping import Bool, Int64

from analysis.evals.probes.tasks import LEAST_FIT, LEAST_TEST
from sae.errors import SaescopeError
from training.config.reading import validated
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.documents import documents

KINDS = ("jsonl", "parquet", "datasets")
MOST_READ = 100_000
"""Maximum rows read."""
MOST_CLASSES = 10
MOST_DOCUMENTS = 4000
"""A quarter of this is the maximum number of documents kept per class and side."""
MOST_CHARS = 8192
"""Characters kept per text, more than the tokens used."""


@dataclass(frozen=True)
class Sample:
    """Labelled documents, smallest hash first.

    Attributes:
        text: text of each document.
        label: class of each document.
        fitted: whether it is for fitting probes or for testing.
        classes: class names, most frequent first.
        notes: what was left out, one sentence each.
    """

    text: tuple[str, ...]
    label: Int64[np.ndarray, " n"]
    fitted: Bool[np.ndarray, " n"]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def first(self, n: int) -> "Sample":
        """At most `n` documents, balanced over classes and sides."""
        each, group = n // (2 * len(self.classes)), 2 * self.label + self.fitted
        rank = np.zeros(len(group), dtype=np.int64)
        for one in np.unique(group):
            rank[group == one] = np.arange(int((group == one).sum()))
        kept = np.flatnonzero(rank < each)
        return Sample(tuple(self.text[i] for i in kept), self.label[kept], self.fitted[kept], self.classes, self.notes)

    @property
    def sha256(self) -> str:
        """Hash of the texts and labels."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for text, label in zip(self.text, self.label.tolist(), strict=True):
            digest.update(f"{label} {len(text)} {text}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class LabelledText:
    """Source of labelled text.

    Attributes:
        source: `jsonl:PATH`, `parquet:PATH`, or `datasets:NAME`, which may be a local .csv.
        text: text column; dots access nested fields, as in a corpus.
        label: label column.
        subset, split: configuration and split of `datasets:NAME`.
    """

    source: str
    text: str = "text"
    label: str = "label"
    subset: str | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """Name of its evaluation: file or dataset name, and label column."""
        _, _, place = self.source.partition(":")
        words = [place.rstrip("/").split("/")[-1].split(".")[0], self.label]
        return "-".join(["labelled", *(re.sub(r"[^A-Za-z0-9_]+", "-", word).strip("-") or "set" for word in words)])

    @cached_property
    def sample(self) -> Sample:
        """The sample for the full suite; read once.

        Raises:
            SaescopeError: no such source or column, no label that rows share, only one class, or too few rows.
        """
        kept: dict[tuple[str, bool], list[tuple[int, str]]] = {}
        counts: Counter[str] = Counter()
        for key, document in self._distinct():
            counts[document.label] += 1
            # max-heap of the smallest hashes
            heap, entry = kept.setdefault((document.label, key % 2 == 0), []), (-key, document.text[:MOST_CHARS])
            (heappush if len(heap) < MOST_DOCUMENTS // 4 else heappushpop)(heap, entry)
        classes, notes = self._classes(counts, {side: len(heap) for side, heap in kept.items()})
        found = sorted((-key, text, label, fitted) for (label, fitted), heap in kept.items() if label in classes
                       for key, text in heap)
        number = {label: i for i, label in enumerate(classes)}
        label = np.array([number[one] for _, _, one, _ in found], dtype=np.int64)
        fitted = np.array([fitted for *_, fitted in found])
        return Sample(tuple(text for _, text, _, _ in found), label, fitted, classes, notes)

    def _distinct(self) -> Iterator[tuple[int, Document]]:
        """Rows with unique texts, and their hashes."""
        seen: set[int] = set()
        for n, document in enumerate(documents((self._source(),))):
            if n == MOST_READ:
                return
            key = int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big")
            if key not in seen:
                seen.add(key)
                yield key, document

    def _source(self) -> TextSource:
        if self.source.partition(":")[0] not in KINDS or not self.source.partition(":")[2]:
            raise SaescopeError(
                f"{self.source} has no label column; give jsonl:PATH, parquet:PATH or datasets:NAME (datasets:PATH.csv "
                "for a CSV file)."
            )
        fields = {"source": self.source, "field": self.text, "label_field": self.label, "subset": self.subset,
                  "split": self.split}
        return validated(TextSource, fields, self.source)

    def _classes(self, counts: Counter[str], kept: dict[tuple[str, bool], int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The most frequent labels with enough rows, and notes on what was left out."""
        where, total = f"{self.label!r} of {self.source}", counts.total()
        # a row with a null label gets a unique one
        shared = sorted((label for label in counts if counts[label] > 1), key=lambda label: (-counts[label], label))
        if not shared:
            raise SaescopeError(f"{where}: no two of {total:,} rows share a label, so there are no classes to probe for.")
        alone = total - sum(counts[label] for label in shared)
        if len(shared) == 1:
            more = f" ({alone:,} more have a unique label, or none)" if alone else ""
            raise SaescopeError(
                f"{where} is {shared[0]!r} in all {counts[shared[0]]:,} rows that share a label{more}: probing needs two "
                "classes.")
        sides = {label: (kept.get((label, True), 0), kept.get((label, False), 0)) for label in shared}
        enough = [label for label in shared if sides[label][0] >= LEAST_FIT and sides[label][1] >= LEAST_TEST]
        if len(enough) < 2:
            have = ", ".join(f"{label!r} has {fit} and {test}" for label, (fit, test) in list(sides.items())[:4])
            raise SaescopeError(
                f"{where} has too few rows: a class needs {LEAST_FIT} to fit on and {LEAST_TEST} to test on, but {have} "
                "(duplicate texts count once); give more.")
        classes = tuple(enough[:MOST_CLASSES])
        rest = total - sum(counts[label] for label in classes)
        told = f"Left out: {rest:,} of {total:,} rows with other labels than the {len(classes)} classes."
        return classes, (told,) if rest else ()
