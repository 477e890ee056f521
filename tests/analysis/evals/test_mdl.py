"""Bits of rows, of a hierarchy with a known saving, and at a precision that the cross-entropy allows."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from analysis.evals.metrics import mdl
from analysis.mdl.description_length import count_levels, description_length, entropy, row_bits
from sae.code import from_dense
from sae.errors import SaescopeError
from tests.analysis.evals.rows import HandContext, made_sae, rows_of

X = torch.randn(600, 8, generator=torch.Generator().manual_seed(1)) + 3


def test_the_mean_of_row_bits_is_the_entropy_code() -> None:
    code = made_sae("abstopk").encode(X).csr()
    for step in (0.05, 0.5, 3.0):
        bits = row_bits([code], step)
        assert len(bits) == 600 and float(bits.mean()) == pytest.approx(entropy(count_levels([code], step)))
    always = from_dense(torch.tensor([[1.0, 0], [1.0, 2.0]]))
    # the first is in every row, with one value: it costs nothing; the second costs a bit in either case
    assert row_bits([always], 1.0).tolist() == [1.0, 1.0]


def test_bits_are_those_of_sae_mdl() -> None:
    sae = made_sae()
    found = mdl.run(HandContext(sae, rows_of(X)), sae, mdl.Settings())
    known = description_length(sae, X)
    assert found.metrics["at_fve"]["bits"].value == pytest.approx(known.bits)
    for name in ("support", "values", "adaptive", "bound", "l0"):
        assert found.metrics["at_fve"][name].value == pytest.approx(getattr(known, name))
    assert "at_ce" not in found.metrics and len(found.notes) == 1


def tree(n: int, p: float, child: float, seed: int = 0) -> np.ndarray:
    """A parent, a child that is only with it, and a stranger."""
    rng = np.random.default_rng(seed)
    parent = rng.random(n) < p
    return np.stack([parent, parent & (rng.random(n) < child), rng.random(n) < 0.1], axis=1).astype(np.float64)


def entropy_of(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_a_child_costs_its_entropy_under_its_parent() -> None:
    p, child, n = 0.2, 0.5, 40_000
    active = tree(n, p, child)
    parents, chances = mdl.fitted(csr_array(active))
    assert parents.tolist() == [-1, 0, -1]
    assert chances.on[1] == pytest.approx(child, abs=0.02) and chances.off[1] < 1e-3
    alone, under = mdl.support_of_rows(csr_array(tree(n, p, child, seed=1)), parents, chances)
    known = entropy_of(p) + entropy_of(p * child) + entropy_of(0.1)
    assert float(alone.mean()) == pytest.approx(known, rel=0.02)
    saved = entropy_of(p * child) - p * entropy_of(child)
    assert float((alone - under).mean()) == pytest.approx(saved, rel=0.03)


def test_costs_are_those_of_every_event() -> None:
    """Row by row and feature by feature, from the probabilities."""
    rng = np.random.default_rng(0)
    active = (rng.random((50, 6)) < 0.3).astype(np.float64)
    parents = np.array([-1, 0, 0, 1, -1, 4])
    alone, on, off = (0.05 + 0.9 * rng.random(6) for _ in range(3))
    chances = mdl.Chances(alone, np.where(parents < 0, alone, on), np.where(parents < 0, alone, off))
    found = mdl.support_of_rows(csr_array(active), parents, chances)
    by_hand = np.zeros((2, 50))
    for r in range(50):
        for f in range(6):
            p = alone[f]
            under = p if parents[f] < 0 else (on[f] if active[r, parents[f]] else off[f])
            for i, chance in enumerate((p, under)):
                by_hand[i, r] -= math.log2(chance if active[r, f] else 1 - chance)
    np.testing.assert_allclose(found, by_hand)


def test_independent_features_have_no_parents() -> None:
    rng = np.random.default_rng(0)
    parents, _ = mdl.fitted(csr_array((rng.random((3000, 80)) < rng.uniform(0.01, 0.3, 80)).astype(np.float64)))
    assert (parents >= 0).sum() <= 1


def test_parents_are_a_forest() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((2000, 5)) < 0.3
    copies = np.concatenate([base, base, base & (rng.random((2000, 5)) < 0.9)], axis=1)
    parents, _ = mdl.fitted(csr_array(copies.astype(np.float64)))
    assert (parents >= 0).sum() == 10
    for feature in range(15):
        seen, at = set(), feature
        while at >= 0:
            assert at not in seen
            seen.add(at)
            at = int(parents[at])


def test_hierarchy_of_rows() -> None:
    active = torch.from_numpy(tree(12_000, 0.2, 0.5)).float()
    found = mdl.hierarchy(rows_of(torch.zeros(12_000, 2), n_documents=60), from_dense(active), seed=0)
    saved = entropy_of(0.1) - 0.2
    assert found["saved"].value == pytest.approx(saved, rel=0.1) and found["children"].value == 1
    low, high = found["saved"].low, found["saved"].high
    assert low is not None and high is not None and low < saved < high


def test_nothing_to_send_is_told() -> None:
    sae = made_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.raises(SaescopeError):
        mdl.run(HandContext(sae, rows_of(X)), sae, mdl.Settings())
