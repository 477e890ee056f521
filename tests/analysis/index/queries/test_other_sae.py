"""The nearest features of another SAE, against dense definitions."""

from pathlib import Path

import numpy as np
import pytest

from analysis.index import Index
from analysis.index.queries.feature_pair import compare, same_space, same_text
from analysis.index.queries.other_sae import nearest
from analysis.render import feature_pair as drawn
from sae import store
from tests.analysis.index.small_indexes import make_index
from tests.analysis.markup import Page

N_SEQS, N_CTX, D_A, D_B = 12, 8, 6, 9
WORDS = [f"w{i}".encode() for i in range(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index, np.ndarray, np.ndarray]:
    """Two SAEs over one text, each with rows that it alone has not encoded; and their dense values on common rows."""
    generator = np.random.default_rng(0)
    base = generator.random((N_SEQS, N_CTX, 1))
    tokens = generator.integers(0, len(WORDS), (N_SEQS, N_CTX))
    indexes, kept, values = [], [], []
    for d_sae, rate in ((D_A, 0.5), (D_B, 0.3)):
        mask = generator.random((N_SEQS, N_CTX)) > 0.15
        noise = generator.random((N_SEQS, N_CTX, d_sae))
        acts = np.where(noise < rate, base + noise, 0) * mask[..., None]
        acts[..., d_sae - 1] = 0  # one that never fires
        folder = tmp_path_factory.mktemp("made")
        indexes.append(make_index(folder, acts, tokens, kept=mask, words=WORDS))
        kept.append(mask)
        values.append(indexes[-1].csc().toarray().astype(np.float64))
    common = (kept[0] & kept[1]).reshape(-1)
    assert not np.array_equal(*kept) and 20 < common.sum() < common.size
    return indexes[0], indexes[1], values[0][common], values[1][common]


def test_the_correlations_are_the_dense_ones(made: tuple[Index, Index, np.ndarray, np.ndarray]) -> None:
    a, b, x, y = made
    assert same_text(a, b)
    for feature in range(D_A - 1):
        found = nearest(a, feature, b, D_B)
        dense = {g: np.corrcoef(x[:, feature], y[:, g])[0, 1] for g in range(D_B - 1)}
        wanted = sorted((g for g in dense if dense[g] > 0), key=lambda g: -dense[g])
        assert [one.feature for one in found.by_correlation if one.score > 0] == wanted
        for one in found.by_correlation:
            assert one.score == pytest.approx(dense[one.feature], abs=1e-9)
    assert nearest(a, D_A - 1, b).by_correlation == []


def test_the_cosines_are_those_of_the_weights(made: tuple[Index, Index, np.ndarray, np.ndarray]) -> None:
    a, b, _, _ = made
    assert same_space(a, b)
    mine, theirs = (store.load(one.run).W_dec.detach().double().numpy() for one in (a, b))
    for feature in range(D_A):
        found = nearest(a, feature, b, 3)
        cosine = theirs @ mine[feature]
        best = [g for g in np.argsort(-cosine)[:3] if cosine[g] > 0]
        assert [one.feature for one in found.by_cosine] == best
        assert [one.score for one in found.by_cosine] == pytest.approx(cosine[best], abs=1e-6)


def test_two_features_of_two_saes_are_compared(made: tuple[Index, Index, np.ndarray, np.ndarray]) -> None:
    a, b, x, y = made
    mine, theirs = (store.load(one.run).W_dec.detach().double().numpy() for one in (a, b))
    for f, g in ((0, 0), (1, 3), (4, 7)):
        found = compare(a, f, g, b)
        on_a, on_b = x[:, f] != 0, y[:, g] != 0
        assert found.both is not None and found.both.total_rows == (on_a & on_b).sum()
        assert found.jaccard == (on_a & on_b).sum() / (on_a | on_b).sum()
        assert (found.share_a, found.share_b) == ((on_a & on_b).sum() / on_a.sum(), (on_a & on_b).sum() / on_b.sum())
        assert found.pearson == pytest.approx(np.corrcoef(x[:, f], y[:, g])[0, 1], abs=1e-9)
        assert found.cosine == pytest.approx(mine[f] @ theirs[g], abs=1e-6)
        one, other = found.both.examples[0]
        assert one.pieces == other.pieces and other.values == b.values(g, other.seq, other.start, other.stop).tolist()


def test_over_another_text_only_directions_are_compared(
    made: tuple[Index, Index, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    a = made[0]
    elsewhere = make_index(tmp_path, np.ones((2, 4, 3)), np.zeros((2, 4), np.int64), words=WORDS)
    found = compare(a, 0, 1, elsewhere)
    assert (found.both, found.pearson) == (None, None) and found.cosine is not None
    assert "indexed over different text" in Page(drawn.summary(found, "a", "b")).text
    near = nearest(a, 0, elsewhere)
    assert near.by_correlation == [] and near.no_correlation == "its index is over a different text"
    page = Page(drawn.nearest("other", near, {}, lambda f: f"?f={f}", lambda f: f"?with=other:{f}"))
    assert "None: its index is over a different text." in page.text
