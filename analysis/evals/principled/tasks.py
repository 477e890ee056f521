"""Tasks whose prompts have known attributes, and edits that change some of them (2405.08366, §2).

    ioi   When Mary and John went to the store, John gave a drink to → Mary
          attributes: who receives, who gives, who is named first (the receiver: 0, the giver: 1)
          edits: receiver, another name; giver, the other of the two (who is named first stays, so that all three change)
    sva   We think that the author near the houses → is, was, has
          attributes: number, number of the noun between, subject, noun between
          edit: number

The words are those of circuits' templates (`analysis.circuits.tasks.builtin`); all prompts of a task have one length.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from analysis.circuits.tasks.builtin.agreement import BEGIN, VERBS
from analysis.circuits.tasks.builtin.ioi import FRAMES
from analysis.circuits.tasks.builtin.template import single_tokens
from analysis.circuits.tasks.builtin.words import (
    MEETING_PLACES,
    NAMES,
    PEOPLE,
    PLACES_AND_THINGS,
    PREPOSITIONS,
    PRESENTS,
    Word,
)
from analysis.circuits.tasks.tokens import answer_tokens, encode
from sae.errors import SaescopeError
from training.model.language_model import Model

Values = tuple[int, ...]
"""One for each attribute."""
MOST_NAMES = 12
"""Names, so that each is seen often in few prompts; likewise nouns."""
_DRAWS = 40


@dataclass(frozen=True)
class Known:
    """A task whose prompts are made of attributes.

    Attributes:
        name: of the task.
        attributes: their names.
        n_values: how many values each has.
        draw: values of a random prompt.
        text: the prompt of some values; words that carry none of them are drawn from the generator.
        answers: what continues it, each one token.
        wrong: what a model that mistakes it would say.
        edits: by name, the values of the counterfactual.
    """

    name: str
    attributes: tuple[str, ...]
    n_values: tuple[int, ...]
    draw: Callable[[Random], Values]
    text: Callable[[Values, Random], str]
    answers: Callable[[Values], tuple[str, ...]]
    wrong: Callable[[Values], tuple[str, ...]]
    edits: Mapping[str, Callable[[Values, Random], Values]]


def known_tasks(model: Model) -> list[Known]:
    """The tasks in the words of a model that are single tokens.

    Raises:
        SaescopeError: it has too few of them.
    """
    found = {kind: single_tokens(list_, model) for kind, list_ in {
        "names": NAMES, "places": MEETING_PLACES, "presents": PRESENTS, "people": PEOPLE, "things": PLACES_AND_THINGS,
        "prepositions": PREPOSITIONS}.items()}
    few = [kind for kind, words in found.items() if len(words) < 3]
    if few:
        raise SaescopeError(
            f"The tokenizer of {model.name} has {len(found[few[0]])} of the {few[0]} that prompts of the tasks are made of "
            "as single tokens: principled tests are made with a model that has words."
        )
    return [_ioi(found), _sva(found)]


def _ioi(words: Mapping[str, Sequence[Word]]) -> Known:
    names = [name for (name,) in words["names"]][:MOST_NAMES]

    def draw(random: Random) -> Values:
        receiver, giver = random.sample(range(len(names)), 2)
        return receiver, giver, random.randrange(2)

    def text(values: Values, random: Random) -> str:
        receiver, giver, second = values
        first, then = (giver, receiver) if second else (receiver, giver)
        (place,), (present,) = random.choice(words["places"]), random.choice(words["presents"])
        return random.choice(FRAMES).format(names[first], names[then], place, names[giver], present)

    def another(values: Values, random: Random) -> Values:
        receiver, giver, second = values
        return random.choice([n for n in range(len(names)) if n not in (receiver, giver)]), giver, second

    def swapped(values: Values, _: Random) -> Values:
        receiver, giver, second = values
        return giver, receiver, 1 - second

    return Known(
        "ioi", ("receiver", "giver", "named first"), (len(names), len(names), 2), draw, text,
        lambda v: (f" {names[v[0]]}",), lambda v: (f" {names[v[1]]}",), {"receiver": another, "giver": swapped},
    )


def _sva(words: Mapping[str, Sequence[Word]]) -> Known:
    people, things = (list(words[kind])[:MOST_NAMES] for kind in ("people", "things"))

    def draw(random: Random) -> Values:
        return random.randrange(2), random.randrange(2), random.randrange(len(people)), random.randrange(len(things))

    def text(values: Values, random: Random) -> str:
        number, between, subject, thing = values
        (preposition,) = random.choice(words["prepositions"])
        return f"{BEGIN} {people[subject][number]} {preposition} the {things[thing][between]}"

    return Known(
        "sva", ("number", "number between", "subject", "noun between"), (2, 2, len(people), len(things)), draw, text,
        lambda v: VERBS[v[0]], lambda v: VERBS[1 - v[0]], {"number": lambda v, _: (1 - v[0], *v[1:])},
    )


@dataclass(frozen=True)
class Examples:
    """Prompts of a task as tokens.

    Attributes:
        tokens: of the prompts; the answer is read behind the last.
        values: of each attribute.
        answers, wrong: their tokens, −1 where there are fewer.
        seeds: of each prompt's other words, so that a counterfactual has the same ones.
    """

    tokens: Int64[Tensor, "n n_ctx"]
    values: Int64[np.ndarray, "n n_attributes"]
    answers: Int64[Tensor, "n n_answers"]
    wrong: Int64[Tensor, "n n_answers"]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def draw_examples(task: Known, model: Model, n: int, seed: int) -> Examples:
    """Random prompts, all of one length.

    Raises:
        SaescopeError: hardly any prompts have one length.
    """
    random = Random(f"{task.name} {seed}")
    drawn = [(task.draw(random), random.randrange(2**31)) for _ in range(2 * n + _DRAWS)]
    ids = encode(model, [task.text(values, Random(own)) for values, own in drawn])
    lengths = Counter(map(len, ids))
    usual = min(lengths, key=lambda length: (-lengths[length], length))
    kept = [one for one, tokens in zip(drawn, ids, strict=True) if len(tokens) == usual][:n]
    if len(kept) < n:
        raise SaescopeError(f"Of {len(drawn)} prompts of {task.name}, {len(kept)} have one length; {n} are needed.")
    return examples_of(task, model, [values for values, _ in kept], [own for _, own in kept])


def examples_of(task: Known, model: Model, values: Sequence[Values], seeds: Sequence[int]) -> Examples:
    """The prompts of some values."""
    texts = [task.text(one, Random(own)) for one, own in zip(values, seeds, strict=True)]
    tokens = torch.tensor(encode(model, texts))
    answers, wrong = (
        _answer_ids(model, texts[0], [which(one) for one in values]) for which in (task.answers, task.wrong))
    return Examples(tokens, np.array(values, dtype=np.int64), answers, wrong, tuple(seeds))


def _answer_ids(model: Model, prompt: str, answers: Sequence[tuple[str, ...]]) -> Int64[Tensor, "n n_answers"]:
    """The tokens of answers behind a prompt; those that are several tokens are left out."""
    distinct = sorted({one for some in answers for one in some})
    token = dict(zip(distinct, answer_tokens(model, prompt, distinct), strict=True))
    rows = [[t for one in some if (t := token[one]) is not None] for some in answers]
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), most)


def counterfactual(task: Known, model: Model, examples: Examples, edit: str, seed: int) -> Examples:
    """The same prompts with an edit's attributes changed."""
    random = Random(f"{task.name} {edit} {seed}")
    values = [task.edits[edit](tuple(one), random) for one in examples.values.tolist()]
    return examples_of(task, model, values, examples.seeds)
