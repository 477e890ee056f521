"""Pairs as tokens: BOS, masks, groups by length, and what is refused."""

import dataclasses
import string

import pytest
import torch

from analysis.circuits.tasks.task import Pair
from analysis.circuits.tasks.tokens import answered, one_length, tokenise
from sae.errors import SaescopeError
from tests.analysis.circuits.tasks.models import smol_tokens
from training.model.language_model import Model
from training.model.load import load_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    """A token is a byte; 3 special ones come first."""
    return load_model("native:tiny")


@pytest.fixture(scope="module")
def smol() -> Model:
    return smol_tokens()


def ids(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def test_examples(tiny: Model) -> None:
    pairs = [
        Pair("long", "lung", ("a", "b"), ("c",)), Pair("ab", "ba", ("x",), ("y", "z")),
        Pair("wide", "wode", ("p",), ("q",)),
    ]
    short, long = tokenise(pairs, tiny)
    assert tiny.prepend_bos and tiny.bos_id is not None
    assert long.clean.tolist() == [[tiny.bos_id, *ids(tiny, "long")], [tiny.bos_id, *ids(tiny, "wide")]]
    assert long.corrupt is not None and long.corrupt.tolist()[0] == [tiny.bos_id, *ids(tiny, "lung")]
    assert long.right.tolist() == [ids(tiny, "ab"), [*ids(tiny, "p"), -1]]
    assert long.wrong.tolist() == [ids(tiny, "c"), ids(tiny, "q")]
    assert long.keep.tolist() == [[False, True, True, True, True]] * 2
    assert short.n_ctx == 3 and short.wrong.tolist() == [ids(tiny, "yz")]


def test_a_model_without_bos(tiny: Model) -> None:
    bare = load_model("native:tiny")
    bare.prepend_bos = False
    (examples,) = tokenise([Pair("ab", None, ("c",))], bare)
    assert examples.clean.tolist() == [ids(tiny, "ab")] and examples.keep.all()
    assert examples.corrupt is None and examples.wrong.shape == (1, 0)


def test_special_tokens_that_a_prompt_spells_out_are_text(tiny: Model) -> None:
    (examples,) = tokenise([Pair("a<eos>", None, ("c",))], tiny)
    assert examples.n_ctx == 7 and examples.keep[0, 1:].all()


def test_answers_are_read_behind_their_prompt(smol: Model) -> None:
    (examples,) = tokenise([Pair("The cat", "The cats", (" is",), (" are",))], smol)
    assert smol.tokenizer.decode(examples.right[0]) == " is" and smol.tokenizer.decode(examples.wrong[0]) == " are"


@pytest.mark.parametrize(("pairs", "facts"), [
    ([Pair("The cat", "The big cats", (" is",), (" are",))], ["The cat", "3 tokens", "The big cats", "4"]),
    ([Pair("The cat", None, (" indistinguishably",))], ["' indistinguishably'", "'ably'", "The cat"]),
    ([Pair("The cat ", None, ("is",))], ["'is'", "The cat "]),
    ([Pair("The cat", "The cats", (" is", " was"), (" was",))], ["' was'", "The cat", "both right and wrong"]),
    ([Pair("", None, (" is",))], ["clean", "empty"]),
    ([Pair("The cat", " ", (" is",), (" are",))], ["corrupt", "empty"]),
    ([Pair("The cat", None, ("",))], ["The cat", "empty"]),
    ([Pair("The cat", None)], ["The cat", "no right answer"]),
    ([Pair("The cat", None, (" is",)), Pair("The cat", "The cats", (" is",))], ["The cat", "no corrupt prompt"]),
    ([], ["no pairs"]),
])
def test_refused(pairs: list[Pair], facts: list[str], smol: Model) -> None:
    with pytest.raises(SaescopeError) as caught:
        tokenise(pairs, smol)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_one_length(smol: Model) -> None:
    cats = Pair("The cat", "The cats", (" is",), (" are",))
    assert len(one_length([cats, dataclasses.replace(cats, clean="The dog")], smol)) == 2
    longer = Pair("The big old cat", "The big old cats", (" is",), (" are",))
    with pytest.raises(SaescopeError) as caught:
        one_length([longer, cats], smol, "edges are drawn by position")
    for fact in ("edges are drawn by position", "'The cat' has 3", "'The big old cat' has 5"):
        assert fact in str(caught.value)


def test_a_single_prompt_is_answered_by_the_model() -> None:
    model = load_model("native:d_vocab=259")
    last = {c: model.logits(torch.tensor([[model.bos_id, *ids(model, c)]]))[0, -1] for c in string.ascii_letters}
    said = {c: model.tokenizer.decode([int(logits.argmax())]) for c, logits in last.items()}
    written = [c for c in said if len(said[c]) == 1 and ids(model, said[c]) == [int(last[c].argmax())]]
    unwritten = [c for c in said if "\ufffd" in said[c]]  # a byte that is part of a character
    assert written and unwritten
    assert [answered(Pair(c), model).right for c in written] == [(said[c],) for c in written]
    assert answered(Pair("a", None, ("b",)), model).right == ("b",)
    with pytest.raises(SaescopeError, match=rf"native:d_vocab=259 continues '{unwritten[0]}' with token \d+"):
        answered(Pair(unwritten[0]), model)
