"""Influence, pruning and scores against sums over all paths and known answers."""

import itertools

import numpy as np
import pytest

from analysis.circuits.attribution.influence import Kinds, cumulative, influence, normalised, prune, scores


def kinds(n_tokens: int, n_features: int, n_errors: int, n_logits: int) -> Kinds:
    order = np.repeat(np.arange(4), [n_tokens, n_features, n_errors, n_logits])
    return Kinds(order == 0, order == 2, order == 3)


def random_graph(seed: int) -> tuple[np.ndarray, np.ndarray, Kinds]:
    """Two tokens, five features and an error among them, two logits, in causal order."""
    rng = np.random.default_rng(seed)
    order = np.array([0, 0, 1, 2, 1, 1, 1, 1, 3, 3])
    found = Kinds(order == 0, order == 2, order == 3)
    adjacency = np.tril(rng.normal(size=(10, 10)) * (rng.random((10, 10)) < 0.7), -1)
    adjacency[found.tokens | found.errors] = 0
    adjacency[:, found.logits] = 0
    return adjacency, np.where(found.logits, [0.0] * 8 + [0.6, 0.3], 0), found


def over_paths(shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ over all paths from a node to a target of the product of their shares times the target's weight."""
    n, total = len(shares), np.zeros(len(shares))
    for length in range(2, n + 1):
        for path in itertools.combinations(range(n), length):
            product = np.prod([shares[later, earlier] for earlier, later in itertools.pairwise(path)])
            total[path[0]] += product * weights[path[-1]]
    return total


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_sum_over_all_paths(seed: int) -> None:
    adjacency, weights, _ = random_graph(seed)
    shares = normalised(adjacency)
    rows = np.abs(adjacency).sum(1) > 0
    np.testing.assert_allclose(shares.sum(1), rows)
    found = influence(shares, weights)
    np.testing.assert_allclose(found, over_paths(shares, weights), rtol=1e-12, atol=1e-14)
    inverse = np.linalg.inv(np.eye(10) - shares) - np.eye(10)
    np.testing.assert_allclose(found, weights @ inverse, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_pruning_keeps_the_smallest_sets_and_nothing_hanging(seed: int) -> None:
    adjacency, weights, kind = random_graph(seed)
    reached = influence(normalised(adjacency), weights)
    found = prune(adjacency, weights, kind, node_share=0.7, edge_share=0.9)
    # the fewest nodes with 70 % of the influence, tried one after the other
    order = sorted(range(10), key=lambda i: -reached[i])
    n = next(n for n in range(11) if reached[order[:n]].sum() >= 0.7 * reached.sum())
    chosen = set(order[:n]) | set(np.flatnonzero(kind.tokens | kind.logits))
    assert set(np.flatnonzero(found.nodes)) <= chosen
    left = np.where(found.edges, adjacency, 0)
    assert not left[~found.nodes].any() and not left[:, ~found.nodes].any()
    features = np.flatnonzero(found.nodes & kind.features)
    assert left[features].any(1).all() and left[:, features].any(0).all()
    assert (found.nodes | ~(kind.tokens | kind.logits)).all()
    np.testing.assert_allclose(np.sort(found.cumulative)[-1], 1)
    assert found.cumulative[order[0]] == pytest.approx(reached[order[0]] / reached.sum())


def test_a_chain_beside_an_error() -> None:
    """token → feature → logit with 3, error → feature with 1, error → logit with 1: all by hand."""
    kind = kinds(1, 1, 1, 1)
    order = [0, 2, 1, 3]  # token, error, feature, logit in causal order
    kind = Kinds(kind.tokens[order], kind.errors[order], kind.logits[order])
    adjacency = np.zeros((4, 4))
    adjacency[2, 0], adjacency[2, 1], adjacency[3, 2], adjacency[3, 1] = 3, -1, 3, 1
    weights = np.array([0, 0, 0, 0.8])
    by_hand = 0.8 * np.array([9 / 16, 1 / 4 + 3 / 16, 3 / 4, 0])
    np.testing.assert_allclose(influence(normalised(adjacency), weights), by_hand)
    replacement, completeness = scores(adjacency, weights, kind)
    assert replacement == pytest.approx(9 / 16)
    # token and error have no inputs; of the feature's 3/4 come from the token, of the logit's from the feature
    on = np.array([9 / 16, 7 / 16, 3 / 4, 1])
    assert completeness == pytest.approx((np.array([1, 1, 3 / 4, 3 / 4]) * on).sum() / on.sum())
    assert prune(adjacency, weights, kind, node_share=0.4, edge_share=0.5).nodes.tolist() == [True, False, True, True]


def test_nothing_is_left_of_nothing() -> None:
    kind = kinds(1, 2, 1, 1)
    found = prune(np.zeros((5, 5)), np.array([0, 0, 0, 0, 0.9]), kind)
    assert found.nodes.tolist() == [True, False, False, False, True] and not found.edges.any()
    assert scores(np.zeros((5, 5)), np.array([0, 0, 0, 0, 0.9]), kind)[0] == 0
    assert cumulative(np.array([1.0, 3.0, 0.0])).tolist() == [1.0, 0.75, 1.0]
