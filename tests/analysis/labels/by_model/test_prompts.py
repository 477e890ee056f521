import pytest

from analysis.labels.by_model.prompts import LONGEST, Excerpt, label_of, marked, said_of, to_explain, to_judge
from tests.analysis.samples import HOSTILE


def test_tokens_are_marked_where_they_stand() -> None:
    assert marked(["<|end|>"], [True]) == "<<< |end|>>>"
    assert marked(["I", " want", " to", "\n"], [False, False, True, False]) == "I want <<to>>⏎"
    assert marked(["1", " <<", " 2", " ", "\x1b"], [True, False, False, True, True]) == "<<1>> < < 2<< >><<␛>>"


def test_the_prompt_for_a_label_shows_what_there_is() -> None:
    prompt = to_explain([Excerpt([" seem", " to", " be"], [0, 10, 2]), Excerpt([" to"], [1])], [" go", "\n"]).text
    assert "1.  seem <<to>> <<be>>\n   values: `to` 10, `be` 2\n2.  <<to>>\n   values: `to` 1" in prompt
    assert "`go`, `⏎`" in prompt and "likelier" not in to_explain([], []).text


def test_of_many_values_the_largest_are_told() -> None:
    text = to_explain([Excerpt(["a"] * 30, [*range(1, 11)] * 3)], []).text
    (values,) = [line for line in text.splitlines() if line.startswith("   values")]
    assert values.count("`") == 18 and "`a` 8" in values and "`a` 7" not in values


def test_the_judge_sees_no_values() -> None:
    prompt = to_judge("after seem", [([" seem", " to"], 1), (["to"], 0)]).text
    assert "   after seem\n" in prompt and "1.  seem <<to>>\n2. <<to>>\n" in prompt and "values" not in prompt


@pytest.mark.parametrize(("answer", "label"), [
    ("LABEL: to after seem", "to after seem"), ("Well.\nlabel :  a\nLABEL: **b**.\n", "b"), ("**LABEL:** x", "x"),
    ("the word import", "the word import"), ('\n\n "quoted" \n', "quoted"), ("1. a\n2. b", None),
    ("x" * 300, None), ("`a` or `b`", "`a` or `b`"),
    ("<think>LABEL: no</think>\nLABEL: yes", "yes"), ("<think>still at it", None), ("", None), ("LABEL:", None),
    ("**Label:**\n\n*a* b", "a* b"),
    (" \u200b\x00 ", None), ("LABEL: a\x1b[31m\u202eb\tc", "a[31mb c"), ("LABEL: " + "long " * 100, None),
])
def test_labels_in_answers(answer: str, label: str | None) -> None:
    found = label_of(answer)
    if "long" in answer:
        assert found is not None and len(found) <= LONGEST and found.endswith("…")
    else:
        assert found == label


@pytest.mark.parametrize("text", [*HOSTILE, "LABEL:" * 100_000, "\n" * 1_000_000, "<think>" * 100_000])
def test_hostile_answers_become_one_short_line_or_none(text: str) -> None:
    for answer in (text, f"LABEL: {text}"):
        found = label_of(answer)
        assert found is None or (0 < len(found) <= LONGEST and found.isprintable())
        assert said_of(answer, 5) is None


@pytest.mark.parametrize(("answer", "said"), [
    ("[2, 3]", [2, 3]), ("The list is [1], or rather [2,3].", [2, 3]), ("[]", []), ("1, 3", [1, 3]), ("2", [2]),
    ("<think>[1]</think>[4]", [4]), ("[3, 3]", [3]), ("[5]", None), ("[0]", None), ("none", None), ("", None), ("  ", None),
    ("[a]", None), (f"[{'9' * 5000}]", None), ("[٣]", None),
])
def test_examples_in_answers(answer: str, said: list[int] | None) -> None:
    found = said_of(answer, 4)
    assert found == (None if said is None else [i in said for i in range(1, 5)])
