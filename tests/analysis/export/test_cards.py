import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.export import cards
from analysis.labels.commands import numbers
from analysis.labels.store import Judged, Label
from analysis.render import feature as render
from analysis.render.export import page
from sae.errors import SaescopeError
from tests.analysis.markup import Page, check_visible
from tests.analysis.samples import HOSTILE, card, dead, example, feature


def test_a_file_needs_nothing_from_elsewhere() -> None:
    html = page([card(), card(feature=feature(feature=12))], "Two")
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "url(" not in html
    parsed = Page(html)
    (policy,) = [e for e in parsed.having("meta") if "http-equiv" in e.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")
    # the neighbour that is in the file is linked, the other is not
    assert [e.attributes["href"] for e in parsed.having("a")] == ["#f7", "#f12", "#f12", "#f12"]
    assert parsed.having("div", id="f12") and parsed.having("title")[0].text == "Two"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_titles_and_labels(text: str) -> None:
    judged = (Judged(1, 1, 0, [text, text], [0.0, 1.0], active=True, said=False),)
    one = card(label=Label(7, text, "auto", 0.75, 0.5, judged))
    html = page([one, one], text)
    for element in Page(html).elements:
        if element.tag in ("h1", "nav", "title"):
            check_visible(element.text)
    check_visible(Page(render.judged(one.label)).text)
    json.loads(cards.as_json([one]))
    cards.as_csv([one]).encode("utf-8")


def test_the_judged_examples_are_shown() -> None:
    judged = (
        Judged(1, 5, 4, ["a", "b"], [0.0, 2.0], active=True, said=True),
        Judged(3, 4, 4, ["c", "d"], [0.0, 0.0], active=False, said=True),
    )
    parsed = Page(render.card(card(label=Label(7, "token `b`", "auto", 0.5, 0.25, judged))))
    assert "accuracy 0.50 on 2 held-out examples (another feature’s label on the same examples: 0.25)" in parsed.text
    assert [e.text for e in parsed.having(class_="sx-whole sx-right")] == ["active"]
    assert [e.text for e in parsed.having(class_="sx-whole sx-wrong")] == ["inactive"]
    assert "your label" in Page(render.card(card(label=Label(7, "mine")))).text


ODD = ["=1+1", "'=1", "NA", "nan", "", " the", "\x00", "b\n", "\r",
       '"', '"=', "\\n", "−", "-", "1.0", "\u202e", "é"]


def test_a_csv_gives_the_very_tokens_back_and_no_formula() -> None:
    import pandas as pd

    values = [0.0, 2.5, *[-1.0] * (len(ODD) - 2)]
    one = card(sections=[replace(card().sections[0], examples=[example(ODD, values)])], label=Label(7, "@x"))
    written = cards.as_csv([one])
    assert not [cell for row in csv.reader(io.StringIO(written)) for cell in row if cell[:1] in ("=", "@", "\t", "\r", "'")]

    read = pd.read_csv(io.BytesIO(written.encode("utf-8")))
    for column in ("label", "token"):
        read[column] = read[column].map(json.loads, na_action="ignore")
    assert read["token"].tolist() == ODD and set(read["label"]) == {"@x"}
    assert read["value"].tolist() == values and read["position"].tolist() == list(range(10, 10 + len(ODD)))
    assert read["is_peak"].tolist() == [0, 1, *[0] * (len(ODD) - 2)]


def test_half_a_character_is_written_too() -> None:
    one = card(sections=[replace(card().sections[0], examples=[example(["\ud83d"], [1.0])])])
    (row,) = csv.DictReader(io.StringIO(cards.as_csv([one]).encode().decode()))
    assert json.loads(row["token"]) == "\ud83d"


def test_json_is_the_card() -> None:
    (found,) = json.loads(cards.as_json([card(feature=replace(dead(), max=float("nan")))]))
    assert found["feature"]["max"] is None and found["names"]["12"]["label"] == "after seem"
    assert found["sections"][0]["examples"][0]["pieces"] == ["def", " import", "\n", " os"]


def test_numbers_of_features() -> None:
    assert numbers("3, 5-7,6", 10) == [3, 5, 6, 7]
    wrong = {"a": "'a' is not a feature", "10": "no feature 10", "5-12": "no feature 12", "": "not a feature or"}
    for text, message in wrong.items():
        with pytest.raises(SaescopeError, match=message):
            numbers(text, 10)


def test_too_many_for_one_file() -> None:
    with pytest.raises(SaescopeError, match="501 features"):
        cards.cards(None, list(range(501)))  # type: ignore[arg-type]


def test_the_file_opens_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(page([card()], "One"), encoding="utf-8")
    assert path.stat().st_size < 50_000
