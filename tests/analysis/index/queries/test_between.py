"""Examples of a range of values, against looking at every value."""


import numpy as np
import pytest

from analysis.index import Index
from tests.analysis.index.small_indexes import make_index, random_codes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray]:
    acts, tokens = random_codes(60, 16, 3, signed=True)
    return make_index(tmp_path_factory.mktemp("made"), acts, tokens, variant="abstopk"), acts


@pytest.mark.parametrize("side", ["+", "-"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1e9), (0.5, 1.5), (2.0, 2.0)])
def test_a_range_holds_what_it_says(made: tuple[Index, np.ndarray], side: str, low: float, high: float) -> None:
    index, acts = made
    size = acts[:, :, 1] * (-1 if side == "-" else 1)
    inside = (size > 0) & (size >= low) & (size < high)
    n, found = index.between(1, low, high, side, n=10_000)
    assert n == int(inside.sum())
    assert [one.seq for one in sorted(found, key=lambda one: one.seq)] == np.flatnonzero(inside.any(1)).tolist()
    for one in found:
        assert low <= abs(one.value) < high and one.value == pytest.approx(acts[one.seq, one.position, 1], rel=1e-3)
        assert one.position == int(inside[one.seq].argmax())
    sizes = [abs(one.value) for one in found]
    assert sizes == sorted(sizes, reverse=True)


def test_a_sample_is_even(made: tuple[Index, np.ndarray]) -> None:
    index = made[0]
    _, every = index.between(0, 0.0, 1e9, n=10_000)
    _, some = index.between(0, 0.0, 1e9, n=5)
    seqs = sorted(one.seq for one in every)
    assert sorted(one.seq for one in some) == [seqs[i * len(seqs) // 5] for i in range(5)]
