"""The tokens that a feature fires on, against counting them one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from analysis.index import Index
from analysis.index.queries import fires_on as query
from analysis.index.types import TokenShare
from sae.errors import SaescopeError
from tests.analysis.index.small_indexes import make_index, random_codes

WORDS = (b"a", b" a", b"b", b" ", b"\n", b" \n", b"c")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray, np.ndarray]:
    acts, tokens = random_codes(40, 16, 5)
    acts[:, :, 4] = 0
    return make_index(tmp_path_factory.mktemp("made"), acts, tokens, words=WORDS), acts, tokens


def test_shares_are_those_of_a_count(made: tuple[Index, np.ndarray, np.ndarray]) -> None:
    index, acts, tokens = made
    merged = {1: 0}  # a space before a word does not count
    for feature in range(4):
        ids = [merged.get(t, t) for t in tokens[acts[:, :, feature] != 0].tolist()]
        by_text = sorted(Counter(WORDS[t].decode().strip(" ") or " " for t in ids).items(), key=lambda x: (-x[1], x[0]))
        assert query.fires_on(index, feature, 10) == tuple(TokenShare(t, n / len(ids)) for t, n in by_text)
        assert index.fires_on(feature) == query.fires_on(index, feature, 10)[:3]
    assert abs(sum(one.share for one in query.fires_on(index, 0, 10)) - 1) < 1e-12


def test_a_frequent_feature_is_sampled_evenly(
    made: tuple[Index, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, tokens = made
    monkeypatch.setattr(query, "N_ROWS", 20)
    position = index.positions(0)
    step = -(-len(position) // 20)
    assert step > 1
    texts = [WORDS[t].decode().strip(" ") or " " for t in tokens.reshape(-1)[position[::step]]]
    assert {one.text: one.share for one in query.fires_on(index, 0, 10)} == {
        text: n / len(texts) for text, n in Counter(texts).items()}


def test_nothing_is_said_of_what_never_fires_or_has_no_text(
    made: tuple[Index, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    assert made[0].fires_on(4) == ()
    acts, tokens = random_codes(4, 8, 3)
    assert make_index(tmp_path, acts, tokens).fires_on(0) == ()
    with pytest.raises(SaescopeError):
        made[0].fires_on(5)
