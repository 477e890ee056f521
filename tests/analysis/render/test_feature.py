from dataclasses import replace

import pytest

from analysis.index.types import Group, Neighbour, Token, TokenShare
from analysis.labels.names import Name
from analysis.render import feature as render
from analysis.render.feature import Section
from tests.analysis.markup import Page, check_visible
from tests.analysis.samples import HOSTILE, card, dead, example, feature


def test_a_card_shows_all_there_is() -> None:
    page = Page(render.card(card()))
    for text in (
        "Feature 7", "30 of 10,000 tokens", "0.300 % (0.210 % – 0.428 %)", "Strongest", "Quantile 3 of 10",
        "1 of 3 tokens, 1.00 to 2.00", "␣import", "#12 after seem",
        "#40 import 61 % from 14 %", "smollm2-135m", "Fire together",
    ):
        assert text in page.text, text
    assert page.elements[0].attributes["aria-label"] == "Feature 7"


def test_a_notebook_draws_the_same() -> None:
    html = card()._repr_html_()
    assert html.endswith(render.card(card())) and html.startswith("<style>") and len(html) < 50_000
    assert "http" not in html.replace("http://www.w3.org", "")


def test_a_dead_feature_says_so() -> None:
    page = Page(render.card(card(feature=dead(), sections=())))
    assert "Never active in 10,000 tokens" in page.text and "never fires on the indexed text" in page.text
    assert not page.having("svg")


def test_firing_says_on_what_and_how_often() -> None:
    told = Page(render.firing(feature(), (TokenShare("False", 0.61), TokenShare("True", 0.14), TokenShare("x", 0.01)))).text
    assert told == "fires on False 61 % True 14 %30 of 10,000 tokens, 0.300 %"
    assert Page(render.firing(dead(), ())).text == "Never active in 10,000 tokens."


def test_both_sides_are_named() -> None:
    signed = feature(n_negative=6)
    section = Section("-", Group("top", 1.0, 3.0, 6), [example(["a"], [-3.0])])
    page = Page(render.group(section, signed))
    assert "Strongest, negative side 1 of 6 tokens" in page.text
    ninth = Section("-", Group("q9", 1.0, 3.0, 6), section.examples)
    told = Page(render.group(ninth, signed)).text
    assert "Quantile 9 of 10, negative side 1 of 6 tokens, −1.00 to −3.00" in told
    assert [e.text for e in page.having("bdi", class_="sx-n4 sx-peak")] == ["a"]
    assert "negative20.00 %" in Page(f"<div>{render.facts(signed)}</div>").text


def test_shares_are_never_rounded_to_nothing() -> None:
    shares = {0.0: "0.00 %", 0.5: "50.00 %", 0.00301: "0.301 %", 3e-6: "0.000300 %", 1.0: "100.00 %"}
    assert {share: render.percent(share) for share in shares} == shares


def test_links_lead_where_they_are_told() -> None:
    found = [Neighbour(12, 0.5), Neighbour(13, -0.25)]
    page = Page(f"<div>{render.neighbours('decoder', found, {}, lambda i: f'?f={i}&x=<' if i == 12 else None)}</div>")
    assert [e.attributes["href"] for e in page.having("a")] == ["?f=12&x=<"]
    assert [e.attributes["class"] for e in page.having("span")] == ["sx-bar sx-bar-p", "sx-bar sx-bar-n"]


def names(text: str) -> dict[int, Name]:
    return {12: Name(text), 40: Name(None, (TokenShare(text, 0.5),))}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_anywhere_is_text(text: str) -> None:
    one = example([text, "b"], [1.0, 0.0])
    hostile = card(
        feature=feature(promoted=[Token(1, text, 1.0)], suppressed=[Token(2, text, -1.0)]),
        sections=[Section("+", Group(text, 0.0, 1.0, 2), [one])], names=names(text), provenance={text: text},
        note=text, tags=[text],
    )
    page = Page(render.card(hostile))
    clean = Page(render.card(replace(
        hostile, note="a", tags=["a"], names=names("a"), provenance={"a": "a"},
        feature=feature(promoted=[Token(1, "a", 1.0)], suppressed=[Token(2, "a", -1.0)]),
        sections=[Section("+", Group("a", 0.0, 1.0, 2), [example(["a", "b"], [1.0, 0.0])])],
    )))
    marks = {"sx-odd", "sx-nl", "sx-br", "sx-in", "sx-quiet"}
    assert [e.tag for e in page.elements if e.attributes.get("class") not in marks] == [
        e.tag for e in clean.elements if e.attributes.get("class") not in marks
    ]
    check_visible(page.text)
