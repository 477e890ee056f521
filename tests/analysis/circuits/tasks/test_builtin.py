"""Built-in behaviours: balanced, disjoint, of one length, right and wrong as they say, through two tokenizers."""

import re
from collections import Counter

import pytest

from analysis.circuits.tasks.builtin import words
from analysis.circuits.tasks.builtin.greater_than import later_and_earlier
from analysis.circuits.tasks.config import TEMPLATES, TaskConfig, make_task
from analysis.circuits.tasks.task import Pair, Task
from analysis.circuits.tasks.tokens import encode, one_length
from sae.errors import SaescopeError
from tests.analysis.circuits.tasks.models import smol_tokens, word_tokens
from training.model.language_model import Model
from training.model.load import load_model

MISSING = {"author", "teachers", "Mary", "drought", "visits"}
AGREEMENT = [name for name in TEMPLATES if name.startswith("agreement")]
NUMBER = {form: n for word in (*words.PEOPLE, *words.PLACES_AND_THINGS) for n, form in enumerate(word)}


@pytest.fixture(scope="module", params=["smol", "words"])
def model(request: pytest.FixtureRequest) -> Model:
    return smol_tokens() if request.param == "smol" else word_tokens(MISSING)


@pytest.fixture(scope="module")
def tasks(model: Model) -> dict[str, Task]:
    return {name: make_task(TaskConfig(builtin=name, n_train=24, n_held_out=12, seed=3), model) for name in TEMPLATES}  # type: ignore[arg-type]


def text(pairs: list[Pair]) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", " ".join(f"{pair.clean} {pair.corrupt}" for pair in pairs)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_pairs_are_many_different_disjoint_and_of_one_length(name: str, model: Model, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    assert (len(task.train), len(task.held_out)) == (24, 12)
    pairs = [*task.train, *task.held_out]
    assert len({pair.clean for pair in pairs}) == 36
    one_length(pairs, model)
    content = {form for list_ in TEMPLATES[name].words.values() for word in list_ for form in word}
    shared = text(list(task.train)) & text(list(task.held_out)) & content
    assert not shared and len(text(list(task.train)) & content) > 4
    if model.d_vocab == 2048:
        assert not text(pairs) & MISSING
    again, other = (TEMPLATES[name].draw(model, 6, 6, seed) for seed in (3, 4))
    assert again == (task.train[:6], task.held_out[:6]) and other[0] != again[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_positions_mean_the_same_in_all_prompts(name: str, model: Model, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    pairs = [*task.train, *task.held_out]
    clean, corrupt = (encode(model, [getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupt"))
    differ = Counter(i for a, b in zip(clean, corrupt, strict=True) for i, (x, y) in enumerate(zip(a, b, strict=True))
                     if x != y)
    n_places = 2 if name == "greater-than" and model.d_vocab == 49152 else 1  # the digits of the year
    assert len(differ) == n_places and max(differ.values()) == 36


@pytest.mark.parametrize("name", AGREEMENT)
def test_agreement_says_nothing_by_its_distractor(name: str, tasks: dict[str, Task]) -> None:
    cases: Counter[tuple[int, ...]] = Counter()
    for pair in tasks[name].train:
        assert pair.corrupt is not None
        clean, corrupt = ([NUMBER[w] for w in p.split() if w in NUMBER] for p in (pair.clean, pair.corrupt))
        assert clean[0] == 1 - corrupt[0] and clean[1:] == corrupt[1:]
        answers = {" is": 0, " was": 0, " has": 0, " are": 1, " were": 1, " have": 1}
        assert {answers[a] for a in pair.right} == {clean[0]} and {answers[a] for a in pair.wrong} == {1 - clean[0]}
        cases[tuple(clean)] += 1
    n_cases = 2 if name == "agreement-simple" else 4
    assert list(cases.values()) == [24 // n_cases] * n_cases


def test_relative_clauses_agree_with_their_own_subject(tasks: dict[str, Task]) -> None:
    plural_verbs = {verb[1] for verb in words.TRANSITIVE}
    for pair in tasks["agreement-across-rc"].train:
        *_, other, verb = pair.clean.split()
        assert (verb in plural_verbs) == bool(NUMBER[other])


def test_ioi_asks_for_the_name_that_is_said_once(tasks: dict[str, Task]) -> None:
    names = {name for (name,) in words.NAMES}
    orders: Counter[bool] = Counter()
    for pair in tasks["ioi"].train:
        assert pair.corrupt is not None
        for prompt, (answer,) in ((pair.clean, pair.right), (pair.corrupt, pair.wrong)):
            said = Counter(w for w in re.findall(r"\w+", prompt) if w in names)
            assert [n for n, times in said.items() if times == 1] == [answer.strip()]
        orders[pair.clean.split()[1] == pair.right[0].strip()] += 1
    assert orders[True] == orders[False] == 12


def test_greater_than(model: Model, tasks: dict[str, Task]) -> None:
    for pair in tasks["greater-than"].train:
        assert pair.corrupt is not None
        century, year, again = re.fullmatch(r".* (\d\d)(\d\d) and .* (\d\d)", pair.clean).groups()  # type: ignore[union-attr]
        assert century == again and int(re.search(r"\d\d(\d\d)", pair.corrupt)[1]) < 10  # type: ignore[index]
        later, earlier = later_and_earlier(int(year))
        if model.d_vocab == 49152:
            assert {*pair.right} == {str(d) for d in range(10) if d > int(year[0])}
            assert {*pair.wrong} == {str(d) for d in range(10) if d < int(year[0])}
        else:
            assert pair.right == later and pair.wrong == earlier


def test_later_and_earlier_by_hand() -> None:
    later, earlier = later_and_earlier(94)
    assert later == ("95", "96", "97", "98", "99")
    assert set(earlier) == {*"012345678", *(f"{n:02d}" for n in range(94))}


def test_more_pairs_than_there_are(model: Model) -> None:
    with pytest.raises(SaescopeError, match=r"agreement-simple has only \d+ held-out pairs.*random.*900"):
        make_task(TaskConfig(builtin="agreement-simple", n_train=2, n_held_out=900), model)


def test_a_tokenizer_without_words() -> None:
    with pytest.raises(SaescopeError, match=r"ioi has only 0 training pairs.*native:tiny.*100"):
        make_task(TaskConfig(builtin="ioi"), load_model("native:tiny"))
