"""Halves of features on axes whose best features are known."""

from itertools import product

import numpy as np
import pytest
from scipy.sparse import csr_array

from analysis.evals.bidirectional.halves import (
    Ends,
    Half,
    best_feature,
    best_pair,
    share_with_both,
    sign_counts,
    two_sided,
    worth,
)


def random_codes(n: int = 200, d: int = 6, seed: int = 0) -> tuple[csr_array, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_a = rng.random(n) < 0.4
    value = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.5)
    value[:, 2] += np.where(is_a, 1.0, -0.7) * (rng.random(n) < 0.6)
    value[:, 4] += is_a * (rng.random(n) < 0.7)
    return csr_array(value), is_a


def balanced(points: np.ndarray, is_a: np.ndarray) -> float:
    return float((points[is_a].mean() + points[~is_a].mean()) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_are_those_of_brute_force(seed: int) -> None:
    codes, is_a = random_codes(seed=seed)
    halves = [Half(f, s) for f, s in product(range(codes.shape[1]), (1, -1))]
    by_hand = {(a, b): balanced(Ends(a, b).points(codes, is_a), is_a) for a, b in product(halves, halves)}
    delta = worth(codes, is_a)
    pair, one = best_pair(delta), best_feature(delta)
    assert by_hand[pair.a, pair.b] == pytest.approx(max(by_hand.values()))
    own = {ends: v for ends, v in by_hand.items() if ends[0].feature == ends[1].feature and ends[0] != ends[1]}
    assert by_hand[one.a, one.b] == pytest.approx(max(own.values())) and one.one_feature
    # the formula at the head of the file
    value = 0.5 + 0.25 * (delta.max() - delta.min())
    assert by_hand[pair.a, pair.b] == pytest.approx(value)


def test_one_signed_feature_does_what_takes_two_unsigned_ones() -> None:
    is_a = np.arange(10) < 5
    signed = csr_array(np.where(is_a, 1.0, -1.0)[:, None])
    split = csr_array(np.stack([is_a, ~is_a], 1).astype(float))
    for codes, one, pair in ((signed, 1.0, 1.0), (split, 0.75, 1.0)):
        delta = worth(codes, is_a)
        assert balanced(best_feature(delta).points(codes, is_a), is_a) == one
        assert balanced(best_pair(delta).points(codes, is_a), is_a) == pair
    assert best_pair(worth(signed, is_a)).one_feature and not best_pair(worth(split, is_a)).one_feature


def test_signs_are_counted_by_unit() -> None:
    value = np.zeros((60, 4))
    value[:, 0] = np.where(np.arange(60) % 5 == 0, -1.0, 1.0)  # a fifth is negative
    value[:, 1] = np.where(np.arange(60) % 20 == 0, -1.0, 1.0)  # a twentieth
    value[:10, 2] = 1.0  # too rare to be judged
    unit = np.arange(60) // 20
    positive, negative = sign_counts(csr_array(value), unit, 3)
    assert positive[:, 0].tolist() == [16, 16, 16] and negative[:, 0].tolist() == [4, 4, 4]
    assert positive[:, 2].tolist() == [10, 0, 0]
    assert share_with_both(positive.sum(0), negative.sum(0)) == 0.5
    assert np.isnan(share_with_both(np.zeros(4), np.zeros(4)))


def test_two_sided() -> None:
    assert two_sided(2.0, -2.0) == 1 and two_sided(2.0, 0.0) == 0 and two_sided(2.0, 1.0) == -0.5
    assert two_sided(1.0, -2.0) == 0.5 and two_sided(0.0, 0.0) == 0
