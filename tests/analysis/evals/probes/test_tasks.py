"""Labelled examples and their scores, against what can be counted by hand."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from analysis.evals.common.result import Units
from analysis.evals.probes.documents import DocumentFacts, text_classes
from analysis.evals.probes.python_text import CLASSES, NONE
from analysis.evals.probes.tasks import (
    balanced_accuracy,
    dense_scores,
    row_examples,
    sparse_scores,
    stretch_examples,
    task,
)

UNITS = Units("document", np.arange(3), np.array([100.0, 100.0, 100.0]))


def side(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of three documents: labels of two classes and none, their codes, and their documents."""
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 2, 300)
    codes = rng.normal(size=(300, 8)) * (rng.random((300, 8)) < 0.3)
    codes[:, 5] = np.where(label == 1, -1.0, 0.0)  # a signed feature tells the second class
    return label, codes, np.arange(300) // 100


def test_a_feature_that_tells_a_class_scores_one_and_the_others_are_noise() -> None:
    (label, codes, unit), (other, more, _) = side(0), side(1)
    one = task("tokens", ("a", "b"), row_examples(label, unit, UNITS, 150, 0), row_examples(other, unit, UNITS, 1000, 0))
    assert one is not None and one.classes == ("a", "b") and len(one.fit) == 150
    scores = sparse_scores(one, csr_array(codes[one.fit.rows]), csr_array(more[one.test.rows]), (1, 2))
    assert scores[1][1].features == (5,) and scores[1][1].accuracy == 1 and scores[1][0].accuracy == 1
    skyline = dense_scores(one, torch.from_numpy(codes[one.fit.rows]), torch.from_numpy(more[one.test.rows]))
    assert skyline[1].accuracy == 1
    # documents add up to what is there
    sums = scores[1][1].sums
    assert sums.shape == (3, 4) and sums[:, 1].sum() == (other == 1).sum() and sums[:, 3].sum() == (other == 0).sum()


def test_balanced_accuracy_by_hand() -> None:
    assert balanced_accuracy(np.array([[3.0, 4.0, 1.0, 10.0]]))[0] == pytest.approx((0.75 + 0.1) / 2)
    assert balanced_accuracy(np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 3.0, 3.0]]))[0] == pytest.approx(0.75)


def test_a_class_with_too_few_examples_is_left_out_but_counts_among_the_others() -> None:
    label, _, unit = side(0)
    rare = np.where(np.arange(300) < 3, 2, label)
    one = task("tokens", ("a", "b", "rare"), *(row_examples(rare, unit, UNITS, 300, 0) for _ in range(2)))
    assert one is not None and one.classes == ("a", "b")
    assert (~one.positive(one.test).any(1)).sum() == 3
    few = row_examples(np.where(np.arange(300) < 4, 1, -1), unit, UNITS, 300, 0)
    assert task("tokens", ("a", "b"), few, few) is None


def test_stretches_are_means_of_64_rows_of_one_document_in_one_context() -> None:
    document = np.repeat([0, 1, 1, 2], [100, 40, 60, 100])
    seq = np.repeat([0, 0, 1, 1], [100, 40, 60, 100])
    label = np.where(document == 1, -1, document)
    found = stretch_examples(label, document, seq, document, UNITS, 100, 0)
    assert sorted(np.bincount(np.asarray(found.of_rows.argmax(0)).reshape(-1)).tolist()) == [36, 36, 64, 64]
    assert found.label.tolist() == [0, 0, 2, 2] and found.unit.tolist() == [0, 0, 2, 2]
    x = torch.arange(300, dtype=torch.float32)[:, None]
    assert found.mean(x[found.rows])[:, 0].tolist() == pytest.approx([31.5, 81.5, 231.5, 281.5])
    assert len(stretch_examples(label, document, seq, document, UNITS, 2, 0)) == 2


def test_a_piece_of_the_library_is_read_in_its_module() -> None:
    import heapq
    from pathlib import Path

    source = Path(heapq.__file__).read_text()
    at = source.index("def heappush")
    line = source[:at].count("\n") + 1
    piece = source[at : at + 200]
    found = text_classes(piece.encode(), DocumentFacts(f"heapq.py:{line}", "heapq.py"))
    assert found is not None and CLASSES[found[0]] == "keyword" and found[3] == NONE
    # one that begins within the docstring at the head of the module
    inside = source.index("Usage:")
    found = text_classes(source[inside : inside + 50].encode(), DocumentFacts("heapq.py:3", "heapq.py"))
    assert found is not None and {CLASSES[c] for c in found if c != NONE} == {"docstring"}
    assert text_classes(b"not there", DocumentFacts("heapq.py:1", "heapq.py")) is None
    assert text_classes(b"x", DocumentFacts("nowhere.py:1", "nowhere.py")) is None


def test_any_other_text_is_python_if_it_parses_up_to_where_it_was_cut() -> None:
    facts = DocumentFacts("a.py")
    whole = "import os\n\ndef f(x):\n    return x\n\ny = 1\n"
    for text in (whole, whole + "z = ('"):
        found = text_classes(text.encode(), facts)
        assert found is not None and len(found) == len(text) and CLASSES[found[0]] == "keyword"
    assert text_classes(b"It is prose.\nIt says so.\nTwice.", facts) is None
