from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from analysis.index.types import Example
from analysis.labels.automatic import N_JUDGED, Explainer, Rule, balanced_accuracy, explain
from analysis.labels.commands import label_all, numbers, told
from analysis.labels.contrast import NEAR, Condition, Words, best_words, chance
from analysis.labels.store import Label, Labels
from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError
from tests.analysis import samples

VOCABULARY = ["<bos>", " import", "Import", " to", " seem", " the", " end", " x", *(f" w{i}" for i in range(40))]
IMPORT, IMPORT2, TO, SEEM, THE, END, X = range(1, 8)
N_SEQS, N_CTX = 120, 32


class Planted:
    """An index whose features follow known rules, as far as labels need one."""

    stale = None
    folder = Path("planted")
    d_sae = 7

    def __init__(self, seed: int = 0, *, other_half: int = 0) -> None:
        random = np.random.default_rng(seed)
        tokens = random.integers(1, len(VOCABULARY), (N_SEQS, N_CTX)).astype(np.int32)
        # both words of the conjunction also stand without each other
        for row in tokens:
            places = 1 + 2 * random.choice(N_CTX // 2 - 1, 9, replace=False)
            row[places[:6]] = SEEM
            row[places[6:] + 1] = TO
            row[places[:3] + 1] = TO
        if other_half:
            tokens[1::2] = np.random.default_rng(other_half).permutation(tokens[1::2].reshape(-1)).reshape(-1, N_CTX)
        tokens[:, 0] = 0
        self.tokens, self.n_seqs, self.n_ctx = tokens, N_SEQS, N_CTX
        self.vocabulary = Vocabulary([text.encode() for text in VOCABULARY])
        kept = np.ones((N_SEQS, N_CTX), dtype=bool)
        kept[:, 0] = False
        self.arrays = {"kept": kept}
        before, after = np.roll(tokens, 1, 1), np.roll(tokens, -1, 1)
        after[:, -1] = 0
        self.active = [
            np.isin(tokens, [IMPORT, IMPORT2]), (tokens == TO) & (before == SEEM), before == THE,
            np.random.default_rng(9).random(tokens.shape) < 0.05, after == END, np.zeros(tokens.shape, dtype=bool),
            tokens == X,
        ]
        values = np.random.default_rng(8).uniform(1, 2, tokens.shape)
        dense = np.stack([(mask & kept) * values for mask in self.active], -1).reshape(-1, self.d_sae)
        dense[:, 6] *= -1
        self.dense = dense.astype(np.float32)

    def csc(self) -> scipy.sparse.csc_array:
        return scipy.sparse.csc_array(self.dense)

    def feature(self, i: int):
        return samples.feature(feature=i, promoted=[], suppressed=[])

    def window(self, i: int, seq: int, position: int, before: int, after: int) -> Example:
        start, stop = max(0, position - before), min(N_CTX, position + after + 1)
        values = self.dense.reshape(N_SEQS, N_CTX, -1)[seq, start:stop, i].tolist()
        return Example(i, seq, position, start, stop, self.vocabulary.pieces(self.tokens[seq, start:stop].tolist()), values,
                       values[position - start])


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(Planted())  # type: ignore[arg-type]


def test_planted_rules_are_found(explainer: Explainer) -> None:
    found = {f: explainer.label(f) for f in range(7)}
    assert found[0].text in ("token ` import`", "token `Import`")
    assert found[1].text == "token ` to` after ` seem`"
    assert found[2].text == "after ` the`"
    assert found[4].text == "before ` end`"
    assert found[5] is None
    assert found[6].text == "token ` x` (negative side)"
    for feature in (0, 1, 2, 4, 6):
        label = found[feature]
        assert label.score == 1.0 and label.baseline <= 0.75 and label.author == "auto"


def test_a_feature_without_a_pattern_is_not_given_one(explainer: Explainer) -> None:
    label = explainer.label(3)
    assert label.text.startswith("no clear pattern") and 0.25 <= label.score <= 0.75


def test_the_judges_are_held_out_balanced_and_true(explainer: Explainer) -> None:
    planted = explainer.index
    for feature in (0, 1, 3, 6):
        label = explainer.label(feature)
        assert all(one.seq % 2 == 1 for one in label.judged)
        assert sum(one.active for one in label.judged) == N_JUDGED == sum(not one.active for one in label.judged)
        assert len({(one.seq, one.active) for one in label.judged}) == 2 * N_JUDGED
        for one in label.judged:
            value = planted.dense.reshape(N_SEQS, N_CTX, -1)[one.seq, one.position, feature]
            assert one.active == bool(value) and one.values[one.peak] == pytest.approx(value, rel=1e-3)
        rows = np.array([one.seq * N_CTX + one.position for one in label.judged])
        said = explainer.rule(feature).says(explainer.words, rows)
        assert said.tolist() == [one.said for one in label.judged]
        right = [np.mean([one.said == one.active for one in label.judged if one.active == side]) for side in (True, False)]
        assert label.score == pytest.approx(np.mean(right))


def test_half_of_the_quiet_judges_are_near_misses(explainer: Explainer) -> None:
    rows, active = explainer.judges(1)
    tokens = explainer.index.tokens.reshape(-1)
    assert (tokens[rows[~active]] == TO).sum() >= N_JUDGED // 2


def test_labels_do_not_know_the_half_that_judges_them() -> None:
    one, other = (Explainer(Planted(other_half=half)) for half in (1, 2))  # type: ignore[arg-type]
    for feature in range(7):
        assert one.rule(feature) == other.rule(feature)
    assert one.judges(0)[0].tolist() != other.judges(0)[0].tolist()


def test_the_halves_share_no_document() -> None:
    """A document goes on from context to context, and contexts hold several."""
    planted = Planted()
    unit = np.arange(N_SEQS * N_CTX).reshape(N_SEQS, N_CTX) // 50
    planted.arrays["unit"] = unit.astype(np.int32)
    words = Words(planted)  # type: ignore[arg-type]
    made, judged = (set(unit.reshape(-1)[words.made_from == side].tolist()) for side in (True, False))
    assert made and judged and not made & judged
    explainer = Explainer(planted)  # type: ignore[arg-type]
    rows, active = explainer.judges(0)
    assert set(unit.reshape(-1)[rows].tolist()) <= judged and active.sum() >= 8
    assert explainer.label(0).score > 0.9  # type: ignore[union-attr]


def test_the_same_seed_makes_the_same_labels(explainer: Explainer) -> None:
    again = explain(Planted(), [6, 0, 3])  # type: ignore[arg-type]
    assert [one.feature for one in again] == [6, 0, 3]
    assert again[1] == explainer.label(0) and again[2] == explainer.label(3)


def test_too_few_examples_leave_a_label_unscored() -> None:
    planted = Planted()
    rows = np.flatnonzero(planted.dense[:, 0])
    held = rows[(rows // N_CTX) % 2 == 1]
    planted.dense[held[3:], 0] = 0
    label = Explainer(planted).label(0)  # type: ignore[arg-type]
    assert label.score is None and label.judged == () and "mport" in label.text
    planted.dense[rows[(rows // N_CTX) % 2 == 0], 0] = 0
    assert Explainer(planted).label(0).text == "no clear pattern"  # type: ignore[arg-type]


def test_words_are_counted_as_by_hand(explainer: Explainer) -> None:
    words = explainer.words
    rows = np.array([5, N_CTX + 1, 3 * N_CTX + 31, 7 * N_CTX + 20])
    flat = words.words
    places = {"token": [0], "after": [-1], "two after": [-2], "before": [1], "near": range(-NEAR, 0)}
    for place, offsets in places.items():
        expected = np.zeros(len(words.names), dtype=int)
        for row in rows:
            seq, position = divmod(int(row), N_CTX)
            for word in {int(flat[seq, position + o]) for o in offsets if 0 <= position + o < N_CTX}:
                expected[word] += 1
        assert words.count(rows, place).tolist() == expected.tolist(), place
    assert words.names[words.words.reshape(-1)[np.flatnonzero(explainer.index.tokens.reshape(-1) == IMPORT2)[0]]] in (
        " import", "Import")


def test_no_condition_is_never_true(explainer: Explainer) -> None:
    rows = np.arange(40)
    assert not Rule((), 0.0).says(explainer.words, rows).any()
    never = Rule((Condition("token", ()),), 0.0)
    assert not never.says(explainer.words, rows).any()


def test_chance_is_that_of_drawing_at_random() -> None:
    found = chance(np.array([2, 0, 3]), 3, np.array([4, 4, 4]), 10)
    # of the 120 ways to draw 3 of 10 rows, C(4, 2) · 6 + C(4, 3) hold at least 2 of the 4
    assert found.tolist() == pytest.approx([(6 * 6 + 4) / 120, 1.0, 4 / 120])


def test_chance_is_that_of_scipy_above_the_mean() -> None:
    from scipy.stats import hypergeom

    rng = np.random.default_rng(0)
    for _ in range(50):
        n_everywhere = int(rng.integers(50, 300_000))
        n_inside, everywhere = int(rng.integers(1, min(n_everywhere, 5000))), rng.integers(1, n_everywhere, 20)
        least = np.maximum(0, n_inside + everywhere - n_everywhere)
        inside = rng.integers(least, np.minimum(n_inside, everywhere) + 1)
        found = chance(inside, n_inside, everywhere, n_everywhere)
        expected = hypergeom.sf(inside - 1, n_everywhere, everywhere, n_inside)
        above = inside * n_everywhere > n_inside * everywhere
        assert found[above] == pytest.approx(expected[above], rel=1e-6, abs=1e-200) and (found[~above] == 1).all()


def test_the_best_words_gain_most() -> None:
    inside, everywhere = np.array([60, 30, 10, 0]), np.array([60, 400, 12, 528])
    assert best_words(inside, 100, everywhere, 1000, most=3, least_gain=0.03) == [0, 2]
    assert best_words(inside, 100, everywhere, 1000, most=1, least_gain=0.03) == [0]
    assert best_words(inside, 0, everywhere, 1000, most=1, least_gain=0.03) == []


def test_balanced_accuracy_weighs_both_sides_alike() -> None:
    said, active = np.array([True, True, False, False, False]), np.array([True, False, False, False, False])
    assert balanced_accuracy(said, active) == pytest.approx((1 + 0.75) / 2)
    assert balanced_accuracy(np.ones(5, bool), active) == 0.5


@pytest.mark.parametrize("seed", [-5, 10**20])
def test_a_seed_that_is_none(seed: int) -> None:
    with pytest.raises(SaescopeError, match=str(seed)):
        Explainer(Planted(), seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["12-3", "-4", "1,b", "0-99"])
def test_features_that_are_none(text: str) -> None:
    with pytest.raises(SaescopeError):
        numbers(text, 20)
    assert numbers("3,1-2", 20) == [3, 1, 2]


def test_labels_are_written_and_yours_stay(tmp_path: Path) -> None:
    labels = Labels(tmp_path, weights="w")
    labels.set_label(0, "mine")
    made = label_all(Planted(), labels, list(range(7)))  # type: ignore[arg-type]
    assert [one.feature for one in made] == [0, 1, 2, 3, 4, 6]
    assert labels.get(0).text == "mine" and labels.every(0)[1].score == 1.0
    kept = Labels(tmp_path, weights="w").get(1)
    assert (kept.text, kept.judged) == (made[1].text, made[1].judged)
    assert told(made).startswith("6 labels, 6 scored on 192 held-out examples: balanced accuracy 0.")
    assert told([Label(1, "a", "auto")]) == "1 labels, none scored: too few held-out examples"


def test_a_stale_index_is_not_labelled(tmp_path: Path) -> None:
    planted = Planted()
    planted.stale = "trained again"
    with pytest.raises(SaescopeError, match="not indexed: trained again"):
        label_all(planted, Labels(tmp_path, weights="w"), [0])  # type: ignore[arg-type]
    planted.stale, planted.vocabulary = None, None
    with pytest.raises(SaescopeError, match="without a tokenizer"):
        label_all(planted, Labels(tmp_path, weights="w"), [0])  # type: ignore[arg-type]


def test_words_of_a_corpus_without_spelling() -> None:
    planted = Planted()
    planted.vocabulary = None
    assert Words(planted).names[0].startswith("#")  # type: ignore[arg-type]
