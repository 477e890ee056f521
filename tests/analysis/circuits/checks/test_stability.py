"""Bootstraps with known answers, and circuits over SAEs whose features are the same in another order."""

from math import comb

import numpy as np
import pytest
import torch
from scipy import sparse

from analysis.circuits.checks import bootstrap
from analysis.circuits.checks.stability import across_saes, jaccard, largest, stability
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, EdgeEffects, NodeEffects, Nodes
from tests.training.model.dense import N, random_sae
from training.model.load import load_model
from training.site import Site

SITE = Site(input="blocks.0.hook_resid_post")


def effects(values: np.ndarray) -> NodeEffects:
    return NodeEffects(Nodes.of([(0, 1, f) for f in range(values.shape[1])]), sparse.csr_array(values))


def test_weights_are_of_draws_with_replacement() -> None:
    drawn = bootstrap.weights(10, 4000, seed=1)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(4000)) and set(np.unique(drawn * 10).round(9)) <= set(range(11))
    assert (drawn == 0).mean() == pytest.approx(0.9**10, abs=0.01)
    assert (bootstrap.weights(10, 5, seed=1) == bootstrap.weights(10, 5, seed=1)).all()
    assert bootstrap.interval(lambda m: m[:, 0], np.array([[1.0]])).low is None


def test_inclusion_is_the_probability_of_being_drawn_ahead() -> None:
    """Node 0 leads; node 1 is 8 in one of 10 examples, node 2 is 1 in all: 1 is ahead if that example is drawn twice."""
    values = np.zeros((10, 5))
    values[:, 0], values[3, 1], values[:, 2], values[:, 3] = -5, 8, 1, 0.1
    found = stability(effects(values), 2, n_bootstraps=4000)
    # at least two of ten draws hit one of ten examples
    ahead = sum(comb(10, k) * 0.1**k * 0.9 ** (10 - k) for k in range(2, 11))
    assert found.which.tolist() == [0, 1, 2, 3] and found.chosen.tolist() == [True, False, True, False]
    assert found.inclusion == pytest.approx([1, ahead, 1 - ahead, 0], abs=0.03)
    assert found.mean == pytest.approx([-5, 0.8, 1, 0.1]) and found.low[0] == found.high[0] == pytest.approx(-5)
    assert found.low[1] == 0 and found.high[1] == pytest.approx(2.4)
    # two draws choose the same two nodes, or share one of three
    same = ahead**2 + (1 - ahead) ** 2
    assert found.jaccard.value == pytest.approx(same + (1 - same) / 3, abs=0.03)
    assert found.consensus(0.9).tolist() == [0] and found.consensus(0.5).tolist() == [0, 2]
    spread = found.by_index(found.inclusion, 5)
    assert np.isnan(spread[4]) and spread[0] == 1


def test_candidates_are_the_largest_and_edges_are_as_nodes() -> None:
    values = np.random.default_rng(0).normal(0, 1, (8, 60)) + np.linspace(0, 3, 60)
    whole, few = (stability(effects(values), 5, n_bootstraps=200, candidates=c) for c in (60, 20))
    assert few.which.tolist() == sorted(np.argsort(-np.abs(values.mean(0)))[:20].tolist())
    assert whole.by_index(whole.inclusion, 60)[few.which] == pytest.approx(few.inclusion, abs=0.05)
    edges = EdgeEffects(Nodes.of([(0, 1, 2)]), np.zeros(60, np.int64), np.zeros(60, np.int64), sparse.csr_array(values))
    assert stability(edges, 5, n_bootstraps=200).inclusion == pytest.approx(whole.inclusion)


def test_fewer_than_asked_for_are_chosen_where_effects_are_zero() -> None:
    assert largest(np.array([[0.0, 2, -3], [0, 0, 1]]), 2).tolist() == [[False, True, True], [False, False, True]]
    found = stability(effects(np.zeros((4, 3))), 2, n_bootstraps=10)
    assert len(found.which) == 0 and found.n == 0


def test_features_of_other_saes_are_matched_by_their_directions() -> None:
    model = load_model("native:n_layers=1", dtype="float64")
    first, second = random_sae(0), random_sae(1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        second.W_dec[:50] = -2 * first.W_dec[order[:50]]  # 50 features of 96 are there, turned and longer
    ours, theirs = (CircuitModel(model, {SITE: sae}) for sae in (first, second))
    known, unknown = order[:6].tolist(), order[60:62].tolist()
    a = Nodes.of([(0, 1, f) for f in known + unknown] + [(0, 2, ERROR)])
    b = Nodes.of([(0, 1, i) for i in range(4)] + [(0, 2, 4), (0, 1, 70), (0, 2, ERROR)])
    found = across_saes(a, ours, b, theirs)
    # four features at one position and the error are shared; a has 5 others... 9 + 7 − 5 in either
    assert found.jaccard == pytest.approx(5 / 11) and found.n_matched == 5
    assert found.there == pytest.approx(6 / 8)
    assert across_saes(a, ours, a, ours).jaccard == 1
    assert jaccard(Nodes.empty(), Nodes.empty()) == 1 and jaccard(a, Nodes.empty()) == 0
