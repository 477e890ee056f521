import re
from collections import Counter

import pytest
from pydantic import ValidationError

from training.config.text_source import TextSource
from training.corpus.documents import documents, identity
from training.corpus.sentences import BEINGS, THINGS, sentences

SOURCE = TextSource(source="simple-sentences")


def test_equal_seeds_give_equal_documents_of_one_to_three_sentences():
    first, again, other = list(sentences(0, 300)), list(sentences(0, 300)), list(sentences(1, 300))
    assert first == again
    assert len(set(first) & set(other)) < 30
    assert {text.count(".") for text in first} == {1, 2, 3}
    assert [d.text for d, _ in zip(documents([SOURCE]), range(300), strict=False)] == first


def test_the_identity_is_of_the_text():
    [facts] = identity([SOURCE])["sources"]
    assert facts["kind"] == "simple-sentences"
    assert len(facts["sha256"]) == 64


def test_subjects_agree_with_their_verbs():
    """Read again from the outside: where a verb form follows the subject at once, its number is the noun's."""
    number = {word: plural for pair in THINGS + BEINGS for plural, word in enumerate(pair)}
    found = Counter()
    for sentence in re.split(r"(?<=\.) ", " ".join(sentences(3, 5_000))):
        match = re.fullmatch(r"\w+(?: \w+)? (\w+) (is|was|has|does|are|were|have|do) .*", sentence)
        if match and match[1] in number:
            found[number[match[1]], match[2] in ("are", "were", "have", "do")] += 1
    assert found[0, False] > 500
    assert found[1, True] > 500
    assert found[0, True] == found[1, False] == 0


def test_plurals_are_those_of_english():
    plural = dict(THINGS + BEINGS)
    assert (plural["leaf"], plural["baby"], plural["fox"], plural["monkey"], plural["bench"], plural["child"]) == (
        "leaves", "babies", "foxes", "monkeys", "benches", "children"
    )
    assert all(one != many for one, many in THINGS + BEINGS)
    words = [word for pair in THINGS + BEINGS for word in pair]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("fields", [{"split": "line"}, {"subset": "en"}, {"chat_roles": ("user",)}])
def test_what_belongs_to_other_sources_is_refused(fields):
    with pytest.raises(ValidationError):
        TextSource(source="simple-sentences", **fields)
