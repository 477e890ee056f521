"""Every statistic equals a brute-force computation on dense fp32 codes."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch

import sae
from analysis.index import Index
from analysis.index.encode import Codes
from analysis.index.neighbours import coactivation, sample_contexts
from sae.code import from_dense
from tests.analysis.index.brute_force import Dense
from tests.analysis.index.small_indexes import make_index, random_codes
from training.model.load import load_model


def test_the_dense_code_is_the_indexed_one(index: Index, dense: Dense) -> None:
    stored = index.csc().toarray()
    assert np.array_equal(stored != 0, dense.acts != 0)
    assert np.array_equal(np.asarray(index.arrays["kept"]).reshape(-1), dense.kept)
    assert np.array_equal(index.tokens, dense.tokens)
    np.testing.assert_allclose(stored, dense.acts, rtol=2**-11)


def test_counts_and_moments(index: Index, dense: Dense) -> None:
    for f in range(index.d_sae):
        rows, values = dense.column(f)
        found, exact = index.feature(f), values.astype(np.float64)
        assert found.n_active == len(rows) and found.n_rows == dense.kept.sum()
        assert found.n_contexts == len(set(rows // dense.n_ctx)) and found.n_negative == (values < 0).sum()
        assert found.density == pytest.approx(len(rows) / dense.kept.sum(), rel=1e-15)
        assert (found.max, found.min) == (values.max(), values.min())
        np.testing.assert_allclose(
            [found.mean, found.second_moment, found.std, found.skew, found.kurtosis],
            [exact.mean(), (exact**2).mean(), exact.std(), scipy.stats.skew(exact), scipy.stats.kurtosis(exact)], rtol=1e-9,
        )


def check_histogram(index: Index, f: int, values: np.ndarray) -> None:
    found = index.feature(f).histogram
    edges = np.array(found.edges)
    for counts, side in ((found.counts_pos, values[values > 0]), (found.counts_neg, values[values < 0])):
        sizes = np.abs(side).astype(np.float64)
        expected = [int(((edges[j] <= sizes) & (sizes < edges[j + 1])).sum()) for j in range(len(edges) - 1)]
        assert counts == expected and sum(counts) == len(side)


def check_groups(index: Index, f: int, rows: np.ndarray, values: np.ndarray, side: str) -> None:
    """Tenths by rank, half-open, with their true populations; examples inside them, from distinct contexts."""
    mine = values > 0 if side == "+" else values < 0
    rows, sizes = rows[mine], np.abs(values[mine])
    groups = {g.name: g for g in index.groups(f, side)}
    assert groups["top"].population == groups["random"].population == len(sizes)
    ranked = np.sort(sizes)
    for j in range(10 if len(sizes) else 0):
        group = groups[f"q{j + 1}"]
        low, high = ranked[len(ranked) * j // 10], ranked[min(len(ranked) * (j + 1) // 10, len(ranked) - 1)]
        assert (group.low, group.high) == (low, high if j < 9 else ranked[-1])
        inside = (sizes >= low) & ((sizes < high) if j < 9 else (sizes <= ranked[-1]))
        assert group.population == inside.sum()
        examples = index.examples(f, f"q{j + 1}", side, 10)
        places = [e.seq * index.n_ctx + e.position for e in examples]
        assert set(places) <= set(rows[inside]) and len({e.seq for e in examples}) == len(examples)
        contexts = len(set(rows[inside] // index.n_ctx))
        assert len(examples) == min(10, contexts) or contexts > 10  # few rows may share contexts
    assert sum(groups[f"q{j}"].population for j in range(1, 11)) == len(sizes)


@pytest.mark.parametrize("signed", [False, True])
def test_histograms_groups_and_tokens(tmp_path: Path, signed: bool) -> None:
    acts, tokens = random_codes(40, 16, 12, signed=signed)
    acts[:, :, 3] = 0
    acts[0, 0, 4], acts[1:, :, 4], acts[0, 1:, 4] = 2.5, 0, 0
    made = make_index(tmp_path, acts, tokens, variant="abstopk" if signed else "topk")
    flat, ids = acts.reshape(-1, 12), tokens.reshape(-1)
    assert made.signed == signed
    for f in range(12):
        rows = np.flatnonzero(flat[:, f])
        values = flat[rows, f]
        check_histogram(made, f, values)
        for side in made.sides:
            check_groups(made, f, rows, values, side)
        stats = made.stats.slice(f, 1).to_pylist()[0]
        if not len(rows):
            assert stats["entropy"] is None and stats["mean"] is None and made.feature(f).dead
            assert made.groups(f)[0].population == 0 and made.examples(f) == []
            continue
        mass = np.bincount(ids[rows], weights=np.abs(values.astype(np.float64)), minlength=7)
        share = mass[mass > 0] / mass.sum()
        assert stats["entropy"] == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-12)
        assert made.arrays["summary"][f][2] == (rows % 16 == 0).sum()
        assert stats["first_token_share"] == pytest.approx((rows % 16 == 0).mean())


def test_density_interval_is_wilsons(index: Index) -> None:
    from scipy.stats import binomtest

    for f in range(0, index.d_sae, 7):
        found = index.feature(f)
        expected = binomtest(found.n_active, found.n_rows).proportion_ci(0.95, method="wilson")
        assert (found.density_low, found.density_high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_coactivation_is_exact(tmp_path: Path, signed: bool) -> None:
    acts, tokens = random_codes(30, 16, 50, signed=signed, share=0.3)
    kept = np.ones((30, 16), bool)
    kept[:, 0] = False
    acts[:, 0] = 0
    made = make_index(tmp_path, acts, tokens, kept=kept)
    flat = acts[kept].astype(np.float64)
    on = flat != 0
    for f in range(50):
        jaccard = np.array([(on[:, f] & on[:, g]).sum() / max(1, (on[:, f] | on[:, g]).sum()) for g in range(50)])
        jaccard[f] = -1
        order = sorted((g for g in range(50) if jaccard[g] > 0), key=lambda g: (-jaccard[g], g))[:32]
        found = made.neighbours(f, "coactivation")
        assert [n.feature for n in found] == order
        np.testing.assert_allclose([n.jaccard for n in found], jaccard[order], rtol=1e-15)
        pearson = np.array([np.corrcoef(flat[:, f], flat[:, g])[0, 1] for g in order])
        np.testing.assert_allclose([n.pearson for n in found], pearson, rtol=1e-9, atol=1e-12)
    assert made.manifest["notes"]["coactivation"] == {"n_contexts": 30, "n_rows": int(kept.sum()), "sampled": False}


def test_a_costly_coactivation_is_counted_over_a_seeded_sample() -> None:
    acts, _ = random_codes(30, 16, 20, share=0.3)
    code = from_dense(torch.from_numpy(acts.reshape(-1, 20)))
    assert code.indptr is not None
    codes = Codes(np.ones(480, bool), code.indptr.numpy(), code.feature.numpy(), code.value.numpy())
    csc = scipy.sparse.csc_array(acts.reshape(-1, 20))
    pairs = int((np.diff(codes.indptr) ** 2).sum())
    position, indptr = csc.indices.astype(np.int32), csc.indptr.astype(np.int64)
    sampled = coactivation(codes, position, indptr, 16, max_pairs=pairs // 3)
    taken, n_rows = sample_contexts(codes, 16, pairs // 3)
    assert 3 < sampled.n_contexts < 15 and n_rows == sampled.n_rows == 16 * sampled.n_contexts
    on = acts[taken].reshape(-1, 20) != 0
    f, g = 0, int(sampled.feature[0, 0])
    assert sampled.jaccard[0, 0] == (on[:, f] & on[:, g]).sum() / (on[:, f] | on[:, g]).sum()


def test_decoder_neighbours(index: Index, folder: Path) -> None:
    rows = sae.load(folder / "runs/quick").W_dec.detach().numpy().astype(np.float64)
    cosine = rows @ rows.T / np.outer(*2 * [np.linalg.norm(rows, axis=1)])
    np.fill_diagonal(cosine, -2)
    for f in range(index.d_sae):
        found = index.neighbours(f)
        np.testing.assert_allclose([n.score for n in found], np.sort(cosine[f])[::-1][:32], atol=1e-5)
        np.testing.assert_allclose([cosine[f, n.feature] for n in found], [n.score for n in found], atol=1e-5)


def test_promoted_tokens_are_those_of_the_model(index: Index, folder: Path) -> None:
    model = load_model("native:tiny")
    row = sae.load(folder / "runs/quick").W_dec.detach()[5:6]
    norm, unembed = model._readout
    weight = norm.weight * (row - row.mean()) / ((row - row.mean()).square().mean() + norm.eps).sqrt()
    logits = (weight @ unembed)[0]
    logits = logits - logits.mean()
    best, worst = logits.topk(10), (-logits).topk(10)
    found = index.feature(5)
    assert [t.id for t in found.promoted] == best.indices.tolist()
    assert [t.id for t in found.suppressed] == worst.indices.tolist()
    np.testing.assert_allclose([t.value for t in found.promoted], best.values.numpy(), rtol=1e-4)
