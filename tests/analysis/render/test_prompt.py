import pytest
import torch

from analysis.index.types import Both
from analysis.labels.names import Name
from analysis.prompt import Top
from analysis.render import cofire, prompt
from analysis.render.feature import reference
from sae.code import from_dense
from tests.analysis.markup import Page, check_visible
from tests.analysis.samples import HOSTILE, example

DENSE = torch.tensor([[0.0, 2.0, 0.0, -1.0], [4.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_the_grid_is_the_code_and_shades_by_each_features_own_scale() -> None:
    code = from_dense(DENSE)
    assert prompt.dense(code, [3, 1, 2]).tolist() == DENSE[:, [3, 1, 2]].tolist()
    page = Page(prompt.grid(["a", "b", "c"], code, [1, 3], {1: Name("one")}, lambda i: f"?f={i}",
                            scale={1: 20.0, 3: 0.0}, selected=3))
    assert [e.text for e in page.having("td")] == ["2.00", "1.00", "", "−1.00", "", ""]
    assert [e.attributes.get("class") for e in page.having("td")] == ["sx-p1", "sx-p1", None, "sx-n10", None, None]
    assert [e.text for e in page.having("th", scope="row")] == ["#1 one", "#3"]
    assert [e.attributes["href"] for e in page.having("a")] == ["?f=1", "?f=3"]
    assert [e.attributes["data-feature"] for e in page.having("tr") if "aria-current" in e.attributes] == ["3"]


def test_a_fixed_k_code_is_read_alike() -> None:
    from sae.code import SparseCode

    fixed = SparseCode(torch.tensor([1, 3, 1, 0, 0, 0], dtype=torch.int32), torch.tensor([2.0, -1, 1, 4, 0, 0]), 3, 4, k=2)
    pieces, scale = ["a", "b", "c"], {0: 0.0, 3: 2.0}
    drawn = [prompt.grid(pieces, code, [0, 3], {}, scale=scale) for code in (fixed, from_dense(DENSE))]
    assert drawn[0] == drawn[1]


def test_tokens_rank_their_features() -> None:
    found = [[Top(1, 2.0, 0, 2, 0.5), Top(3, -1.0, 0, 1, 0.25)], [Top(0, 4.0, 1, 1, 1.0)], []]
    page = Page(prompt.by_token(["a", "b", "c"], found, {0: Name("zero")}))
    assert [e.text for e in page.having("td")] == ["2.00 #1", "−1.00 #3", "4.00 #0 zero", "", "", ""]
    shades = [e.attributes.get("class") for e in page.having("span") if e.attributes.get("class", "").startswith("sx-")]
    assert shades == ["sx-p5", "sx-n3", "sx-p10"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_prompts(text: str) -> None:
    code = from_dense(torch.tensor([[1.0], [0.0]]))
    for html in (
        prompt.grid([text, "b"], code, [0], {0: Name(text)}, scale={0: 1.0}),
        prompt.by_token([text, "b"], [[Top(0, 1.0, 0, 1, 1.0)], []], {0: Name(text)}),
        cofire.both(Both(1, 1, [(example([text], [1.0]), example([text], [2.0], feature=8))]),
                    reference(7, {7: Name(text)}, lambda _: None), "#8", (text, "#8")),
    ):
        check_visible(Page(html).text)


def test_both_features_are_told_apart() -> None:
    first, second = example(["a", "b", "c"], [2.0, 1.0, 0.0]), example(["a", "b", "c"], [0.0, 3.0, 0.0], feature=8)
    page = Page(cofire.both(Both(12, 3, [(first, second)]), "#7", "#8", ("#7", "#8")))
    assert "both in 3 contexts, at the same token 12 times" in page.text
    tokens = [e for e in page.having("bdi") if e.attributes.get("role") or not e.attributes]
    assert [e.attributes.get("class") for e in tokens] == ["sx-p10", "sx-p5 sx-b10", None]
    assert tokens[1].attributes["aria-label"] == "b, #7 1.00 · #8 3.00"


def test_two_features_that_never_meet() -> None:
    assert "no context in which both fire" in Page(cofire.both(Both(0, 0, []), "#1", "#2", ("#1", "#2"))).text
