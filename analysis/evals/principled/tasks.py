"""Tasks whose prompts have known attributes, and edits that change some of them (2405.08366, §2).

    ioi   When Mary and John went to the store, John gave a drink to → Mary
          attributes: receiver, giver, who is named first (the receiver: 0, the giver: 1)
          edits: receiver, a new name; giver, the other of the two (the name order stays, so all three attributes change)
    sva   We think that the author near the houses → is, was, has
          attributes: number, number of the intervening noun, subject, intervening noun
          edit: number

Words are those of the circuit tasks (`analysis.circuits.tasks.builtin`); all prompts of a task have the same length.
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
"""One value per attribute."""
MOST_NAMES = 12
"""Maximum number of names and of nouns, so that each occurs often even in few prompts."""
_DRAWS = 40


@dataclass(frozen=True)
class Known:
    """A task whose prompts are defined by attributes.

    Attributes:
        name: name of the task.
        attributes: attribute names.
        n_values: number of values of each attribute.
        draw: draws the values of a random prompt.
        text: builds the prompt for some values; all other words are drawn from the generator.
        answers: right answers, single tokens.
        wrong: wrong answers to compare with.
        edits: by name, function that gives the counterfactual's values.
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
    """The tasks, with words that are single tokens of the model.

    Raises:
        SaescopeError: too few words are single tokens.
    """
    found = {kind: single_tokens(list_, model) for kind, list_ in {
        "names": NAMES, "places": MEETING_PLACES, "presents": PRESENTS, "people": PEOPLE, "things": PLACES_AND_THINGS,
        "prepositions": PREPOSITIONS}.items()}
    few = [kind for kind, words in found.items() if len(words) < 3]
    if few:
        raise SaescopeError(
            f"The tokenizer of {model.name} has only {len(found[few[0]])} of the tasks' {few[0]} as single tokens: run "
            "principled tests with a model whose tokens are words."
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
    """Tokenised prompts of a task.

    Attributes:
        tokens: token ids; the answer is the next token.
        values: value of each attribute.
        answers, wrong: answer tokens, padded with −1.
        seeds: seed of each prompt's other words, so that the counterfactual has the same ones.
    """

    tokens: Int64[Tensor, "n n_ctx"]
    values: Int64[np.ndarray, "n n_attributes"]
    answers: Int64[Tensor, "n n_answers"]
    wrong: Int64[Tensor, "n n_answers"]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def draw_examples(task: Known, model: Model, n: int, seed: int) -> Examples:
    """Draw random prompts, all of the same length.

    Raises:
        SaescopeError: too few prompts have the same length.
    """
    random = Random(f"{task.name} {seed}")
    drawn = [(task.draw(random), random.randrange(2**31)) for _ in range(2 * n + _DRAWS)]
    ids = encode(model, [task.text(values, Random(own)) for values, own in drawn])
    lengths = Counter(map(len, ids))
    usual = min(lengths, key=lambda length: (-lengths[length], length))
    kept = [one for one, tokens in zip(drawn, ids, strict=True) if len(tokens) == usual][:n]
    if len(kept) < n:
        raise SaescopeError(f"Only {len(kept)} of {len(drawn)} prompts of {task.name} have the same length, not {n}.")
    return examples_of(task, model, [values for values, _ in kept], [own for _, own in kept])


def examples_of(task: Known, model: Model, values: Sequence[Values], seeds: Sequence[int]) -> Examples:
    """Tokenised prompts for the given values."""
    texts = [task.text(one, Random(own)) for one, own in zip(values, seeds, strict=True)]
    tokens = torch.tensor(encode(model, texts))
    answers, wrong = (
        _answer_ids(model, texts[0], [which(one) for one in values]) for which in (task.answers, task.wrong))
    return Examples(tokens, np.array(values, dtype=np.int64), answers, wrong, tuple(seeds))


def _answer_ids(model: Model, prompt: str, answers: Sequence[tuple[str, ...]]) -> Int64[Tensor, "n n_answers"]:
    """Tokens of answers after a prompt, padded with −1; multi-token answers are skipped."""
    distinct = sorted({one for some in answers for one in some})
    token = dict(zip(distinct, answer_tokens(model, prompt, distinct), strict=True))
    rows = [[t for one in some if (t := token[one]) is not None] for some in answers]
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), most)


def counterfactual(task: Known, model: Model, examples: Examples, edit: str, seed: int) -> Examples:
    """The same prompts with the edit's attributes changed."""
    random = Random(f"{task.name} {edit} {seed}")
    values = [task.edits[edit](tuple(one), random) for one in examples.values.tolist()]
    return examples_of(task, model, values, examples.seeds)
