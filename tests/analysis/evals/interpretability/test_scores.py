"""Scores of labels on features that follow known rules, and entropies that can be worked out."""

import numpy as np
import pytest
from scipy.sparse import csc_array, csr_array

from analysis.evals.interpretability.coded_text import CodedText, Part
from analysis.evals.interpretability.scores import (
    detection,
    entropies,
    entropy_by_chance,
    fuzzing,
    in_context,
)
from analysis.labels.automatic import Explainer
from analysis.vocabulary import Vocabulary

N_CTX, N_TOKENS = 32, 40


def part(n_seqs: int, seed: int) -> Part:
    """Random tokens; feature 0 is active at token 3, feature 1 behind token 5, feature 2 anywhere, feature 3 never."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, N_TOKENS, (n_seqs, N_CTX)).astype(np.int32)
    before = np.roll(tokens, 1, 1)
    before[:, 0] = 0
    active = np.stack([tokens == 3, before == 5, random.random(tokens.shape) < 0.03, np.zeros(tokens.shape)], -1)
    kept = np.flatnonzero(np.arange(tokens.size) % N_CTX > 0)
    return Part(tokens, kept, csr_array(active.reshape(-1, 4).astype(float)[kept]))


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    words = Vocabulary([f" w{i}".encode() for i in range(N_TOKENS)])
    return Explainer(CodedText(part(120, 0), part(60, 1), words))  # type: ignore[arg-type]


def test_features_that_follow_a_rule_score_one_and_chance_scores_half(explainer: Explainer) -> None:
    for feature in (0, 1):
        assert detection(explainer, feature, feature) == 1 and fuzzing(explainer, feature, feature) == 1
        assert detection(explainer, feature, 1 - feature) == pytest.approx(0.5, abs=0.15)
    assert detection(explainer, 2, 2) == pytest.approx(0.5, abs=0.2)
    assert detection(explainer, 3, 3) is None and fuzzing(explainer, 3, 3) is None


def test_labels_are_made_from_one_part_and_judged_on_the_other(explainer: Explainer) -> None:
    rows, active = explainer.judges(0)
    assert (rows >= 120 * N_CTX).all() and active.sum() == 16
    assert explainer.words.rows.max() < 120 * N_CTX


def test_fuzzing_looks_at_silent_tokens_of_the_same_contexts(explainer: Explainer) -> None:
    rows, active = explainer.judges(0)
    others = in_context(explainer, 0, rows[active])
    assert (others // N_CTX == rows[active] // N_CTX).all()
    assert not set(others.tolist()) & set(explainer.active(0)[0].tolist())
    assert (others % N_CTX > 0).all()  # rows that are not kept are no examples


def test_coded_text_puts_codes_where_their_tokens_are() -> None:
    one, two = part(5, 0), part(3, 1)
    text = CodedText(one, two, Vocabulary([b"x"] * N_TOKENS))
    dense = text.csc().toarray()
    assert dense.shape == (8 * N_CTX, 4)
    expected = np.zeros_like(dense)
    expected[one.row] = one.codes.toarray()
    expected[5 * N_CTX + two.row] = two.codes.toarray()
    assert np.array_equal(dense, expected) and isinstance(text.rows, csc_array)


def test_entropies_by_hand() -> None:
    feature = np.array([0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2])
    token = np.array([7, 7, 7, 7, 0, 0, 0, 0, 1, 1, 2, 3])
    found = entropies(feature, token, 3)
    assert found[0] == 0 and np.isnan(found[1]) and found[2] == pytest.approx(1.75)


def test_random_rows_have_the_entropy_of_chance() -> None:
    token = np.arange(4096) % 16
    chance = entropy_by_chance(token, np.array([1, 20, 4096]), 0)
    assert chance[0] == 0 and chance[2] == pytest.approx(4.0) and 2.5 < chance[1] < 4
    # mean of many draws
    random = np.random.default_rng(1)
    drawn = np.concatenate([random.choice(token, 20, replace=False) for _ in range(500)])
    assert chance[1] == pytest.approx(entropies(np.arange(500).repeat(20), drawn, 500).mean(), abs=0.1)
