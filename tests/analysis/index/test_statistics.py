"""Every statistic equals a brute-force computation on dense fp32 codes."""

import numpy as np
import pytest
import scipy.stats

from analysis.index import Index
from tests.analysis.index.dense import Dense


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
