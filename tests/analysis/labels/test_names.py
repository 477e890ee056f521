"""A name for every feature: its label, else the tokens that it fires on."""

from pathlib import Path

import pytest

from analysis.index import Index
from analysis.index.types import TokenShare
from analysis.labels.names import Name, Names
from analysis.render import names as render
from tests.analysis.index.small_indexes import make_index, random_codes


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    acts, tokens = random_codes(20, 16, 4)
    acts[:, :, 3] = 0
    return make_index(tmp_path_factory.mktemp("made"), acts, tokens, words=[b"a", b"b", b"c", b"d", b"e", b"f", b"g"])


def test_a_label_comes_first_and_every_feature_has_a_name(index: Index) -> None:
    names = Names(index, {1: "mine"})
    assert len(names) == 4 and list(names) == [0, 1, 2, 3]
    assert render.text(names[1]) == "mine" and names[1].fires_on == index.fires_on(1)
    first = index.fires_on(0)[0]
    assert render.text(names[0]).startswith(f"{first.text} {100 * first.share:.0f} %")
    assert render.name(names[3]) == render.text(names[3]) == ""
    for missing in (-1, 4):
        assert missing not in names
        with pytest.raises(KeyError):
            names[missing]


def test_brief_names_are_the_labels_and_the_most_frequent_tokens(index: Index) -> None:
    brief, tokens = Names(index, {1: "mine"}).brief(), index.stats["top_token"].to_pylist()
    assert brief == [tokens[0] or "", "mine", tokens[2] or "", ""]


def test_rare_tokens_are_left_out_except_the_first() -> None:
    few = Name(None, (TokenShare("a", 0.004), TokenShare("b", 0.003)))
    assert render.text(few) == "a under 1 %"
    assert render.text(Name(None, (TokenShare(" ", 0.9), TokenShare("x", 0.05)))) == "␣ 90 %, x 5 %"


def test_names_are_text(tmp_path: Path) -> None:
    acts, tokens = random_codes(4, 8, 2)
    hostile = make_index(tmp_path, acts, tokens, words=[b"<b>&", b"\xff\xfe", b"\n", b"\x00", b"</span>", b'"', b"x" * 99])
    for feature in range(2):
        shown = render.name(Names(hostile, {})[feature])
        assert "<b>" not in shown.replace("<bdi>", "") and "\x00" not in shown and "x" * 20 not in shown
        assert '"' not in render.attribute(Names(hostile, {})[feature])
