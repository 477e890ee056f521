"""Questions to an index, against dense answers."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.index import Index
from analysis.index.store import read_vocabulary, write_vocabulary
from analysis.vocabulary import Vocabulary
from sae.code import from_dense
from sae.errors import SaescopeError
from tests.analysis.index.brute_force import Dense
from tests.analysis.index.small_indexes import make_index, random_codes


def test_codes_and_values(index: Index, dense: Dense) -> None:
    for seq in (0, 7, 127):
        rows = dense.acts[seq * 32 : seq * 32 + 32]
        np.testing.assert_allclose(index.code(seq).to_dense().numpy(), rows, rtol=2**-11)
        for f in (0, 63):
            np.testing.assert_allclose(index.values(f, seq, 3, 20), rows[3:20, f], rtol=2**-11)


def test_where_two_features_fire(index: Index, dense: Dense) -> None:
    on = dense.acts != 0
    peaks = np.abs(dense.acts).reshape(-1, 32, index.d_sae).max(1)
    for a, b in ((0, 1), (5, 60), (9, 9), (63, 2)):
        found = index.where(a, b, n=1000)
        assert found.total_rows == (on[:, a] & on[:, b]).sum()
        contexts = np.flatnonzero((peaks[:, a] > 0) & (peaks[:, b] > 0))
        assert found.total_contexts == len(contexts) == len(found.examples)
        weaker = np.minimum(peaks[:, a] / peaks[:, a].max(), peaks[:, b] / peaks[:, b].max())
        order = weaker[[one.seq for one, _ in found.examples]]
        assert (np.diff(order) < 1e-3).all()
        for one, other in found.examples:
            assert (one.seq, one.start, one.stop) == (other.seq, other.start, other.stop)
            assert one.start <= min(one.position, other.position) and max(one.position, other.position) < one.stop
            assert abs(one.value / peaks[one.seq, a] - 1) < 2**-10 and abs(other.value / peaks[one.seq, b] - 1) < 2**-10


@pytest.mark.parametrize("signed", [False, True])
def test_similar_contexts_are_exact(tmp_path: Path, signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.index.queries.cooccurrence._AT_ONCE", 100)
    acts, tokens = random_codes(50, 16, 40, signed=signed, share=0.05)
    acts[:, 3, 7] = 1000  # everywhere, and strongest
    made = make_index(tmp_path, acts, tokens)
    stored = made.csc().toarray().reshape(50, 16, 40)
    pooled = np.take_along_axis(stored, np.abs(stored).argmax(1)[:, None], 1)[:, 0].astype(np.float64)
    query, _ = random_codes(1, 5, 40, signed=signed, share=0.1, seed=9)
    peak = query[0][np.abs(query[0]).argmax(0), np.arange(40)].astype(np.float64)
    weight = np.log(50 / (pooled != 0).sum(0))
    assert weight[7] == 0 and (weight > 0).sum() > 30
    pooled, peak = pooled * weight, peak * weight
    expected = pooled @ peak / np.linalg.norm(pooled, axis=1) / np.linalg.norm(peak)
    found = made.similar(from_dense(torch.from_numpy(query[0])), n=10)
    np.testing.assert_allclose([s.score for s in found], np.sort(expected)[::-1][:10], rtol=1e-12)
    np.testing.assert_allclose(expected[[s.seq for s in found]], [s.score for s in found], rtol=1e-12)
    assert made.similar(from_dense(torch.zeros(3, 40))) == []
    with pytest.raises(SaescopeError, match="different SAEs"):
        made.similar(from_dense(torch.ones(1, 3)))


def test_near_misses_are_not_active_and_have_a_known_token(tmp_path: Path) -> None:
    acts, tokens = random_codes(40, 32, 3, share=0.1)
    acts[:, :, 0] = (tokens == 2) * acts[:, :, 1] * 3
    made = make_index(tmp_path, acts, tokens)
    found, group = made.examples(0, "near"), made.groups(0)[-1]
    assert found and all(tokens[e.seq, e.position] == 2 and acts[e.seq, e.position, 0] == 0 for e in found)
    assert group.population == ((tokens == 2) & (acts[:, :, 0] == 0)).sum()
    assert len({e.seq for e in found}) == len(found)


def test_sorting_and_filtering(index: Index) -> None:
    table = index.top("kurtosis", where="density > 0.01 AND n_contexts > 3", limit=5, columns=["feature", "kurtosis"])
    rows = sorted(((f.kurtosis, f.feature) for f in map(index.feature, range(64))
                   if f.density > 0.01 and f.n_contexts > 3 and f.kurtosis is not None), reverse=True)
    assert table.column("feature").to_pylist() == [f for _, f in rows[:5]]
    assert index.top("density", limit=3, offset=2).num_rows == 3
    for bad in ({"sort": "nothing"}, {"where": "density >"}, {"where": "1=1); DROP TABLE stats; --"}, {"limit": -1},
                {"where": "feature IN (SELECT 1 FROM read_text('/etc/passwd'))"}):
        with pytest.raises(SaescopeError):
            index.top(**bad)
    assert index.top().num_rows == 64


def test_search(index: Index) -> None:
    whole = ["".join(index.pieces(seq)) for seq in range(index.n_seqs)]
    hits = index.search("ea", n=10_000)
    assert len(hits) == sum(text.count("ea") for text in whole)
    for hit in hits[:20]:
        assert "".join(index.pieces(hit.seq, hit.position, hit.position + hit.length)) == "ea"
    assert index.search("e[aeiou]+ ", regex=True, n=3)
    for bad, regex in (("", False), ("(", True), ("(?=e)a", True), ("((e{99}){99}){99}", True), ("\ud800", True),
                       ("e" * 1001, False)):
        with pytest.raises(SaescopeError):
            index.search(bad, regex=regex)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+!", r"((a?){30}){30}b", r"(.*)*x"])
def test_no_expression_hangs(tmp_path: Path, pattern: str) -> None:
    """Python's own engine would need longer than anybody lives for the first two."""
    tokens = np.zeros((4, 512), np.int64)
    made = make_index(tmp_path, np.ones((4, 512, 1), np.float32), tokens, words=[b"aaaa", b"b"])
    begun = time.monotonic()
    assert pattern == "(a+)+$" or made.search(pattern, regex=True) == []
    assert made.search("(a+)+$", regex=True)[0].length == 512
    assert time.monotonic() - begun < 10


def test_a_search_takes_places_evenly_from_the_whole_corpus(index: Index) -> None:
    for text, regex in (("ea", False), ("e[aeiou]", True)):
        every = index.search(text, regex, n=10**6)
        assert index.search_evenly(text, regex, n=10**6) == (every, len(every))
        for n in (1, 7, 20):
            some, total = index.search_evenly(text, regex, n=n)
            assert total == len(every) > 20
            assert some == [every[(2 * i + 1) * total // (2 * n)] for i in range(n)]
    assert index.search_evenly("nowhere in there", n=5) == ([], 0)


def test_a_search_that_takes_too_long_is_given_up(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.index.queries.search.SECONDS", -1.0)
    with pytest.raises(SaescopeError, match="took longer"):
        index.search("nowhere.in.there", regex=True)
    assert index.search("e")


def test_an_expression_sees_characters_and_passes_over_what_is_none(tmp_path: Path) -> None:
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    made = make_index(tmp_path, np.ones((1, 8, 1), np.float32), tokens, words=WORDS)
    assert [(h.position, h.length) for h in made.search("^aé", regex=True)] == []
    assert [(h.position, h.length) for h in made.search("^a é.<", regex=True)] == [(0, 5)]  # one character of two tokens
    assert [(h.position, h.length) for h in made.search(r"\x00", regex=True)] == [(5, 1)]


WORDS = [b"a", " é".encode(), b"\xf0\x9f", b"\x98\x80", b"<script>alert(1)</script>", b"\x00", "\u202e".encode(), b"\xff",
         b"x" * 5000]


def test_hostile_and_broken_tokens_are_text(tmp_path: Path) -> None:
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [8, 2, 0, 3, 3, 2, 3, 99]])
    acts = np.ones((2, 8, 1), np.float32)
    made = make_index(tmp_path, acts, tokens, words=WORDS)
    assert made.pieces(0) == ["a", " é", "😀", "", "<script>alert(1)</script>", "\x00", "\u202e", "�"]
    assert made.pieces(1) == ["x" * 5000, "��", "a", "��", "��", "😀", "", "#99"]
    assert made.pieces(0, 2, 3) == ["😀"] and made.pieces(0, 3, 4) == [""]
    assert [(h.position, h.length) for h in made.search("😀")] == [(2, 2), (5, 2)]
    assert made.search("<script>")[0].position == 4 and made.search("\x00")[0].position == 5
    assert [len(e.pieces) == len(e.values) for e in made.examples(0)] == [True, True]


def test_vocabulary_survives_its_file(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "v.parquet", Vocabulary(WORDS))
    assert read_vocabulary(tmp_path / "v.parquet").tokens == WORDS


def test_an_sae_whose_features_are_all_dead(tmp_path: Path) -> None:
    made = make_index(tmp_path, np.zeros((3, 8, 5), np.float32), np.zeros((3, 8), np.int64))
    assert made.manifest["counts"]["n_dead"] == 5 and all(made.feature(f).dead for f in range(5))
    assert made.examples(0) == [] and made.neighbours(0, "coactivation") == [] and len(made.neighbours(0)) == 4
    assert made.where(0, 1).total_contexts == 0 and made.feature(0).max == 0
    assert made.top("density").num_rows == 5 and made.code(1).n_active == 0


def test_one_feature(tmp_path: Path) -> None:
    acts, tokens = random_codes(3, 8, 1, share=0.6)
    made = make_index(tmp_path, acts, tokens)
    assert made.neighbours(0) == [] and made.feature(0).n_active == np.count_nonzero(acts)


def test_what_is_not_there_is_said(index: Index) -> None:
    for ask, words in (
        (lambda: index.feature(64), "0 to 63"), (lambda: index.feature(-1), "0 to 63"),
        (lambda: index.pieces(128), "0 to 127"),
        (lambda: index.examples(0, "q11"), "near"), (lambda: index.examples(0, side="-"), r"have sides \+"),
        (lambda: index.neighbours(0, "tea"), "decoder"), (lambda: index.values(0, 0, 5, 99), "of 32"),
    ):
        with pytest.raises(SaescopeError, match=words):
            ask()
