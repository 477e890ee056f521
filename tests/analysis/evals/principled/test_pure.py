"""Supervised dictionaries, greedy edits and attributes, against worlds that are made by hand and against brute force."""

from itertools import chain, combinations, pairwise, product

import numpy as np
import pytest
from scipy.sparse import csr_array

from analysis.evals.principled.attributes import (
    best_features,
    best_union,
    counts,
    explained,
    n_parts,
    occluded,
)
from analysis.evals.principled.control import Active, active, greedy_edit, norm_matched
from analysis.evals.principled.supervised import mean_codes, mse_codes, variance_explained

SIZES = (2, 5)


def additive(correlated: bool = False) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Activations that are a mean and a code for each of two attributes: (acts, values, codes)."""
    rng = np.random.default_rng(0)
    codes = tuple(rng.normal(size=(n, 8)) for n in SIZES)
    grid = np.array(list(product(range(2), range(5))))
    values = grid[rng.integers(len(grid), size=400)] if correlated else np.tile(grid, (4, 1))
    if correlated:
        values[:, 0] = np.where(rng.random(400) < 0.8, values[:, 1] % 2, values[:, 0])
    return 3.0 + codes[0][values[:, 0]] + codes[1][values[:, 1]], values, codes


def test_both_dictionaries_are_exact_where_attributes_are_independent() -> None:
    acts, values, codes = additive()
    mean, mse = mean_codes(acts, values, SIZES), mse_codes(acts, values, SIZES)
    for found in (mean, mse):
        assert np.allclose(found.reconstruct(values), acts)
        assert variance_explained(acts, found.reconstruct(values)) == pytest.approx(1)
        # an edit is the difference of the true codes, whatever they are centred on
        old, new = values[:, 1], (values[:, 1] + 1) % 5
        assert np.allclose(found.edit(1, old, new), codes[1][new] - codes[1][old])


def test_mse_codes_alone_undo_a_correlation_of_attributes() -> None:
    acts, values, codes = additive(correlated=True)
    mean, mse = mean_codes(acts, values, SIZES), mse_codes(acts, values, SIZES)
    assert np.allclose(mse.reconstruct(values), acts)
    old, new = np.array([0]), np.array([1])
    true = codes[0][1] - codes[0][0]
    assert np.allclose(mse.edit(0, old, new)[0], true)
    assert not np.allclose(mean.edit(0, old, new)[0], true, atol=0.1)
    # the mean codes are what they are called
    assert np.allclose(mean.mean + mean.codes[0][1], acts[values[:, 0] == 1].mean(0))


def test_a_value_that_never_occurs_has_no_code() -> None:
    acts, values, _ = additive()
    found = mean_codes(acts, values, (2, 6))
    assert not found.codes[1][5].any() and np.isfinite(found.codes[1]).all()


def by_brute_force(source: np.ndarray, target: np.ndarray, a: Active, b: Active, k: int) -> float:
    """The least distance that any edit of at most k out and k in reaches."""
    def some(n: int) -> list[tuple[int, ...]]:
        return list(chain.from_iterable(combinations(range(n), j) for j in range(k + 1)))

    return min(
        float(np.linalg.norm(source - a.vector[list(out)].sum(0) + b.vector[list(in_)].sum(0) - target))
        for out, in_ in product(some(len(a.feature)), some(len(b.feature)))
    )


@pytest.mark.parametrize("k", [1, 2])
def test_greedy_edits_are_the_best_where_features_are_orthogonal(k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(5):
        source_code, target_code = (rng.normal(size=8) * (rng.random(8) < 0.6) for _ in range(2))
        # of what costs one out, one in, or both, the greedy choice need not be the best
        target_code[source_code != 0] = 0
        basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
        codes = csr_array(np.stack([source_code, target_code]))
        a, b = active(codes, 0, basis), active(codes, 1, basis)
        source, target = source_code @ basis, target_code @ basis
        edit = greedy_edit(source, target, a, b, k)
        assert len(edit.removed) <= k and len(edit.added) <= k
        assert np.linalg.norm(source + edit.change - target) == pytest.approx(by_brute_force(source, target, a, b, k))


def test_a_feature_of_both_takes_its_new_value_in_one_step() -> None:
    codes = csr_array(np.array([[5.0, 1.0, 0.0], [5.5, 0.0, 0.5]]))
    a, b = active(codes, 0, np.eye(3)), active(codes, 1, np.eye(3))
    source, target = a.vector.sum(0), b.vector.sum(0)
    one = greedy_edit(source, target, a, b, 1)
    assert np.linalg.norm(source + one.change - target) == pytest.approx(by_brute_force(source, target, a, b, 1))
    every = greedy_edit(source, target, a, b, 3)
    assert np.allclose(source + every.change, target)
    assert sorted(every.removed) == [0, 1] and sorted(every.added) == [0, 2] and every.weight == pytest.approx(2)


def test_edits_never_go_astray_and_more_features_bring_them_nearer() -> None:
    rng = np.random.default_rng(5)
    W = rng.normal(size=(12, 6))
    codes = csr_array(rng.normal(size=(2, 12)) * (rng.random((2, 12)) < 0.5))
    source, target = rng.normal(size=(2, 6))
    a, b = active(codes, 0, W), active(codes, 1, W)
    far = [np.linalg.norm(source + greedy_edit(source, target, a, b, k).change - target) for k in (0, 1, 2, 4, 12)]
    assert far[0] == pytest.approx(np.linalg.norm(source - target))
    assert all(late <= early + 1e-12 for early, late in pairwise(far))


def test_an_edit_of_everything_weighs_both_reconstructions() -> None:
    codes = csr_array(np.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]]))
    a, b = active(codes, 0, np.eye(4)), active(codes, 1, np.eye(4))
    edit = greedy_edit(a.vector.sum(0), b.vector.sum(0), a, b, 4)
    assert edit.removed == (1, 0) and edit.added == (3, 2) and edit.weight == pytest.approx(2)
    one = greedy_edit(a.vector.sum(0), b.vector.sum(0), a, b, 1)
    assert one.weight == pytest.approx(4 / 5 + 9 / 10)


def test_the_placebo_is_as_long() -> None:
    change = np.random.default_rng(0).normal(size=(5, 7))
    placebo = norm_matched(change, 0)
    assert np.allclose(np.linalg.norm(placebo, axis=1), np.linalg.norm(change, axis=1))
    assert not np.allclose(placebo, norm_matched(change, 1))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_union_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of_value = rng.integers(1, 20, 6).astype(float)
    together = np.floor(rng.random(6) * (of_value + 1))
    f1 = {
        union: 2 * together[list(union)].sum() / (together.sum() + of_value[list(union)].sum())
        for n in range(1, 6) for union in combinations(range(6), n)
    }
    found, values = best_union(together, of_value, 5)
    assert found == pytest.approx(max(f1.values())) and found == pytest.approx(f1[values])


def test_features_of_an_attribute() -> None:
    values = np.repeat(np.arange(4), 25)
    is_ = values[:, None] == np.arange(4)
    active_ = np.stack([is_[:, 2], is_[:, 0] | is_[:, 1], np.ones(100, dtype=bool), np.zeros(100, dtype=bool)], 1)
    together, of_value = counts(active_, values, 4), np.full(4, 25.0)
    assert np.array_equal(counts(csr_array(active_), values, 4), together)
    best = best_features(together, of_value)
    assert (best[2].feature, best[2].f1) == (0, 1.0) and best[0].f1 == pytest.approx(2 / 3)
    assert explained(together, of_value) == pytest.approx([1.0, 2 / 3, 0.4, 0.0])
    assert best_union(together[:, 1], of_value, 2) == (1.0, (0, 1))


def test_occlusion_is_of_what_is_shorter() -> None:
    assert occluded(np.array([3.0, 1.0, 0.0]), np.array([0.9, 0.2, 0.1])) == [1]
    assert occluded(np.array([1.0, 3.0]), np.array([0.9, 0.2])) == []


def test_a_mixture_of_ten_is_split_in_ten() -> None:
    """Two values, each of which ten features share between them: the paper's toy of two Gaussians."""
    value, which = np.repeat([False, True], 200), np.tile(np.arange(10), 40)
    split = (which[:, None] == np.arange(10)) & value[:, None]
    assert n_parts(split, value) == 9  # nine of ten cover nine tenths
    assert n_parts(np.concatenate([split, value[:, None]], 1), value) == 1
    assert n_parts(split, ~value) is None
    assert n_parts(np.zeros((400, 0), dtype=bool), value) is None
