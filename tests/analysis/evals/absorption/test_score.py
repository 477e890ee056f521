"""Absorption by hand: a parent on one axis, a child on another, and dictionaries whose absorption is known."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from analysis.evals.absorption.score import (
    DEFINITIONS,
    Parts,
    absorbed,
    below,
    f1_of,
    fraction_of_code,
    main_features,
    parts_of,
)
from analysis.evals.probes.sparse import mean_difference

P, C, _ = np.eye(3)


def of(value: list[float], directions: np.ndarray, x: np.ndarray, special: list[bool] | None = None) -> dict[str, float]:
    """Absorption of one row; feature 0 is the main one, and p is the parent's axis."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    special_ = np.ones(len(value), dtype=bool) if special is None else np.array(special)
    parts = parts_of(csr_array([value]), x[None], P, unit, np.array([0]), special_)
    return {name: float(row[0]) for name, row in absorbed(parts).items()}


def test_without_absorption_all_are_zero() -> None:
    assert set(of([1.0, 1.0, 0.0], np.eye(3), P + C).values()) == {0.0}


def test_a_child_that_holds_its_parent_absorbs_it_whole() -> None:
    found = of([0.0, 2**0.5], np.array([P, P + C]), P + C)
    assert found == {"full": 1.0, "fraction_2503": 1.0, "fraction_0.6": 1.0, "hierarchical": 1.0}


def test_a_child_that_takes_seven_tenths() -> None:
    # x = P + C = 0.3 P + 0.7 (P + C) + 0.3 C
    found = of([0.3, 0.7 * 2**0.5, 0.3], np.array([P, P + C, C]), P + C)
    assert found["full"] == 0 and found["fraction_2503"] == pytest.approx(0.7)
    assert found["fraction_0.6"] == pytest.approx(0.7) and found["hierarchical"] == pytest.approx(0.7)


def test_what_is_below_four_tenths_counts_in_the_paper_alone() -> None:
    found = of([0.8, 0.2 * 2**0.5, 0.8], np.array([P, P + C, C]), P + C)
    assert found["fraction_2503"] == pytest.approx(0.2) and found["fraction_0.6"] == 0


def test_many_small_absorbers_count_in_the_paper_alone() -> None:
    # five features of cosine 0.09 each: too oblique for the code, and more than the three it takes
    slanted = np.array([0.09, 0.0, (1 - 0.09**2) ** 0.5])
    directions = np.array([P, *[slanted] * 5])
    found = of([0.0, *[2.0] * 5], directions, P)
    assert found["fraction_2503"] == pytest.approx(1.0) and found["fraction_0.6"] == 0


def test_a_feature_of_something_else_absorbs_nothing_in_a_hierarchy() -> None:
    found = of([0.0, 2**0.5], np.array([P, P + C]), P + C, special=[True, False])
    assert found["fraction_0.6"] == 1 and found["hierarchical"] == 0


def test_signed_codes_keep_their_direction() -> None:
    # a negative value along −p gives as much as a positive one along p; along p it takes away
    turned = of([0.0, -(2**0.5)], np.array([P, -P - C]), P + C)
    assert turned["full"] == 1 and turned["fraction_0.6"] == 1
    against = of([0.0, -(2**0.5)], np.array([P, P + C]), P + C)
    assert against["full"] == 0 and against["fraction_0.6"] == 0 and against["fraction_2503"] == 0


def test_the_code_agrees_with_its_rules_row_by_row() -> None:
    """SAEBench's arithmetic, written out row by row with sorts, on many random rows."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=(300, 12)) * (rng.random((300, 12)) < 0.5)
    cosine, projection = rng.uniform(-0.5, 0.9, 12), rng.normal(1, 1, 300)
    main = np.array([2, 5])
    parts = Parts(value, cosine, projection, main, np.ones(12, dtype=bool))
    found = fraction_of_code(parts, cosine >= 0.1)
    for row, p, got in zip(value, projection, found, strict=True):
        m = sum(row[f] * cosine[f] for f in main)
        given = row * cosine
        rest = sorted(given[f] for f in range(12) if f not in main and cosine[f] >= 0.1 and given[f] > 0)
        total = sum(rest[-3:])
        if m >= p or total / p < 0.4:
            expected = 0.0
        elif m <= 0:
            expected = 1.0
        else:
            cut = min(total, p - m)
            expected = min(max(cut / (cut + m), 0), 1)
        assert got == pytest.approx(expected)


N_CHILDREN = 10


def world(n: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a parent in half of them, and one of ten children in 2 % of those each: (x, parent, child or −1)."""
    rng = np.random.default_rng(1)
    parent, other = rng.random(n) < 0.5, rng.random(n) < 0.5
    child = np.where(parent, np.floor(rng.random(n) / 0.02), N_CHILDREN).astype(int)
    child = np.where(child < N_CHILDREN, child, -1)
    one = child[:, None] == np.arange(N_CHILDREN)
    return np.concatenate([parent[:, None], other[:, None], one], 1).astype(float), parent, child


def measured(directions: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """The mean absorption of the parent over the rows that hold it, by a dictionary with these directions and codes."""
    x, parent, _ = world()
    direction = np.eye(x.shape[1])[0]
    codes, unit = csr_array(values), directions / np.linalg.norm(directions, axis=1, keepdims=True)
    difference = mean_difference(codes, parent[:, None], np.ones((len(parent), 1), dtype=bool))[0]
    main = main_features(codes, parent, difference, unit @ direction)
    assert main.tolist() == [0]
    parts = parts_of(codes[parent], x[parent], direction, unit, main, below(codes, parent, unit @ direction))
    return {name: float(rows.mean()) for name, rows in absorbed(parts).items()}


def test_the_true_dictionary_absorbs_nothing() -> None:
    x, _, _ = world()
    assert set(measured(np.eye(x.shape[1]), x).values()) == {0.0}


def test_children_that_hold_their_parent_absorb_it_as_often_as_they_occur() -> None:
    x, parent, child = world()
    directions = np.eye(x.shape[1])
    directions[2:, 0] = 1.0
    values = x.copy()
    values[:, 2:] *= 2**0.5
    values[child >= 0, 0] = 0.0
    share = (child >= 0).sum() / parent.sum()
    assert measured(directions, values) == pytest.approx(dict.fromkeys(DEFINITIONS, share))


def test_below_is_special_to_the_concept() -> None:
    x, parent, child = world()
    rare = (child == 0).astype(float)
    codes = csr_array(np.stack([parent.astype(float), rare, x[:, 1], -rare], 1))
    assert below(codes, parent, np.array([1.0, 0.7, 0.3, 0.7])).tolist() == [True, True, False, False]


def test_f1() -> None:
    assert f1_of(np.array([True, True, False]), np.array([True, False, True])) == 0.5
    assert f1_of(np.zeros(2, dtype=bool), np.zeros(2, dtype=bool)) == 0.0
