"""Two features beside each other, against dense definitions."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from analysis.index import Index
from analysis.index.queries.feature_pair import compare
from analysis.labels.names import Name
from analysis.render import feature_pair as drawn
from analysis.render.feature import reference
from sae import store
from sae.errors import SaescopeError
from tests.analysis.index.small_indexes import make_index
from tests.analysis.markup import Page


def dense(index: Index) -> np.ndarray:
    """All codes, `[n_seqs · n_ctx, d_sae]` in fp64; only encoded rows count."""
    return index.csc().toarray().astype(np.float64)


@pytest.fixture
def pairs(index: Index) -> list[tuple[int, int]]:
    busy = index.top("n_active", limit=4, columns=["feature"])["feature"].to_pylist()
    return [(a, b) for a in busy for b in busy]


def test_a_comparison_is_the_dense_one(index: Index, pairs: list[tuple[int, int]]) -> None:
    codes, directions = dense(index), store.load(index.run).W_dec.detach().double().numpy()
    # rows that were not encoded are zero in the dense matrix too; they are no observations
    n_none = len(codes) - index.n_rows
    for a, b in pairs:
        found = compare(index, a, b)
        x, y = codes[:, a], codes[:, b]
        both, either = int(((x != 0) & (y != 0)).sum()), int(((x != 0) | (y != 0)).sum())
        assert (found.both.total_rows, found.jaccard) == (both, both / either)
        assert (found.share_a, found.share_b) == (both / (x != 0).sum(), both / (y != 0).sum())
        # the zero rows are taken away again from the end of a sorted column: any zeros are the same
        silent = np.flatnonzero((x == 0) & (y == 0))[:n_none]
        kept = np.delete(np.arange(len(codes)), silent)
        assert found.pearson == pytest.approx(np.corrcoef(x[kept], y[kept])[0, 1], abs=1e-9)
        assert found.cosine == pytest.approx(directions[a] @ directions[b], abs=1e-6)


def test_a_silent_feature_has_nothing_in_common(tmp_path: Path) -> None:
    acts = np.zeros((2, 4, 2), np.float32)
    acts[..., 0] = 1.0
    index = make_index(tmp_path, acts, np.zeros((2, 4), np.int64))
    found = compare(index, 1, 1)
    assert (found.jaccard, found.share_a, found.pearson, found.both.total_rows) == (None, None, None, 0)
    other = compare(index, 0, 1)  # the first never varies
    assert (other.jaccard, other.share_a, other.share_b, other.pearson) == (0.0, 0.0, None, None)
    with pytest.raises(SaescopeError):
        compare(index, 0, 2)


def test_neighbours_agree_with_the_index(index: Index, pairs: list[tuple[int, int]]) -> None:
    a = pairs[0][0]
    for near in index.neighbours(a, "decoder")[:3]:
        assert compare(index, a, near.feature).cosine == pytest.approx(near.score, abs=1e-3)
    for near in index.neighbours(a, "coactivation")[:3]:
        assert compare(index, a, near.feature).jaccard == pytest.approx(near.jaccard, abs=1e-3)


def test_it_is_drawn_as_text(index: Index, pairs: list[tuple[int, int]]) -> None:
    a, b = pairs[1]
    names = {a: Name("<b>bold</b>"), b: Name("\u202eturned")}
    found, one, two = compare(index, a, b), index.feature(a), index.feature(b)
    first, second = (reference(f, names, lambda _: None) for f in (a, b))
    whole = (drawn.summary(found, first, second) + drawn.facts(one, two) + drawn.promoted(one, two)
             + drawn.examples(index.examples(a), one, first))
    assert "<b>" not in whole and "\u202e" not in whole and "&lt;b&gt;bold" in whole
    Page(whole)  # balanced
    assert f"#{a}" in drawn.facts(one, two) and f"{one.n_active:,}" in drawn.facts(one, two)
    unknown = dataclasses.replace(found, cosine=None, jaccard=None, pearson=None, share_a=None, share_b=None)
    assert "–" in drawn.summary(unknown, first, second)
