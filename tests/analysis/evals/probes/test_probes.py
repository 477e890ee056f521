"""Probes against transformer-lens' own, against sklearn, and where the answer is known."""

import numpy as np
import pytest
import torch
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

from analysis.evals.probes.logistic import NARROW, Scale, balanced, fit
from analysis.evals.probes.sparse import matrix, mean_difference, ranked, sparse_probes
from sae.code import SparseCode, from_dense


def codes(n: int = 300, d: int = 12, seed: int = 0) -> tuple[SparseCode, np.ndarray]:
    """Signed codes of which the sum of two features, with noise, decides the class; a quarter is positive."""
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, d, generator=g) * (torch.rand(n, d, generator=g) < 0.4)
    score = 2 * dense[:, 3] - dense[:, 7] + 0.5 * torch.randn(n, generator=g)
    return from_dense(dense), (score > score.quantile(0.75)).numpy()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_same_probe_as_transformer_lens(k: int) -> None:
    code, y = codes()
    theirs = fit_sparse_probe(
        code.to_dense().double(), torch.from_numpy(y), k=k, preprocess="standardize", std_floor=0.0, seed=1)
    train, test = theirs.train_indices.numpy(), theirs.test_indices.numpy()
    ours = sparse_probes(matrix(code)[train], y[train], [k])[k]
    assert ours.features.tolist() == theirs.selected_features.tolist()
    assert torch.allclose(ours.probe.theta[:, 0], theirs.coefficients, atol=1e-6)
    assert torch.allclose(ours.probe.bias[0], theirs.intercept, atol=1e-6)
    right = (ours.logits(matrix(code)[test]) >= 0).numpy() == y[test]
    assert right.mean() == pytest.approx(theirs.metrics.accuracy)


def test_mean_differences_are_those_of_dense_codes() -> None:
    code, y = codes()
    used = np.arange(len(y)) % 3 > 0
    dense = code.to_dense().double().numpy()
    expected = dense[y & used].mean(0) - dense[~y & used].mean(0)
    assert np.allclose(mean_difference(matrix(code), y[:, None], used[:, None])[0], expected)
    assert ranked(expected, 3).tolist() == sorted(range(12), key=lambda i: -abs(expected[i]))[:3]


def test_many_wide_probes_are_the_narrow_ones() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, NARROW + 1, generator=g)
    y = torch.stack([x[:, 0] + torch.randn(200, generator=g) > 0.5, x[:, 1] > 0], 1)
    wide = fit(x, y)
    # inputs that are constant have no weight, so that a narrow probe on those that matter is no other
    x[:, NARROW - 2 :] = 1.0
    again, narrow = fit(x, y), fit(x[:, : NARROW - 2], y)
    assert torch.allclose(again.theta[: NARROW - 2], narrow.theta, atol=1e-5)
    assert torch.allclose(again.logits(x), narrow.logits(x[:, : NARROW - 2]), atol=1e-5)
    assert ((wide.logits(x) > 0) == y).double().mean() > 0.7


def test_the_optimum_is_sklearns() -> None:
    from sklearn.linear_model import LogisticRegression

    code, y = codes()
    x = Scale.of(code.to_dense())(code.to_dense()).numpy()
    # sklearn's sum over samples with C is ours times n: C = 1 / (n λ)
    theirs = LogisticRegression(C=1 / (len(y) * 0.01), class_weight="balanced", tol=1e-10, max_iter=2000).fit(x, y)
    ours = fit(code.to_dense(), torch.from_numpy(y)[:, None])
    assert np.allclose(ours.theta[:, 0], theirs.coef_[0], atol=1e-4)


def test_one_separating_feature_is_found_and_classes_weigh_alike() -> None:
    dense = torch.zeros(100, 4)
    dense[:10, 2] = 1.0
    y = torch.arange(100) < 10
    weights = balanced(y[:, None])
    assert weights[y].sum() == pytest.approx(0.5) and weights[~y].sum() == pytest.approx(0.5)
    found = sparse_probes(matrix(from_dense(dense)), y.numpy(), [1])[1]
    assert found.features.tolist() == [2]
    assert ((found.logits(matrix(from_dense(dense))) > 0).numpy() == y.numpy()).all()


def test_directions_are_gradients_in_raw_units() -> None:
    code, y = codes()
    x = code.to_dense() * torch.logspace(-2, 2, 12)
    probes = fit(x, torch.from_numpy(y)[:, None])
    step = torch.zeros(1, 12)
    step[0, 3] = 1.0
    slope = probes.logits(x[:1] + step) - probes.logits(x[:1])
    assert torch.allclose(slope[0, 0], probes.directions[0, 3])
