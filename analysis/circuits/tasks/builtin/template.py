"""Draw pairs from a template until enough of them fit a model's tokenizer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from analysis.circuits.tasks.builtin.words import Word
from analysis.circuits.tasks.task import Pair
from analysis.circuits.tasks.tokens import answer_tokens, encode
from sae.errors import SaescopeError
from training.model.language_model import Model

Words = Mapping[str, Sequence[Word]]
_MISSES = 1000
"""Give up after this many draws without a new pair."""
_N_SAMPLED = 48
"""Pairs drawn to find the most common length."""


@dataclass(frozen=True)
class Template:
    """Generator of a task's pairs.

    Attributes:
        name: name of the behaviour.
        pair: function of a random generator, the words and the case that returns a pair.
        n_cases: number of cases; they take turns, so each has the same share of the pairs.
        words: word lists by kind; training and held-out pairs share none of these words.
        shared: word lists used by both: words without content of their own.
        metric: name of the default metric.
    """

    name: str
    pair: Callable[[Random, Words, int], Pair]
    n_cases: int
    words: Words
    shared: Words = field(default_factory=dict)
    metric: str = "logit_difference"

    def draw(self, model: Model, n_train: int, n_held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
        """Draw training and held-out pairs: all distinct, with prompts of one length, determined by the seed.

        Uses only words whose forms are all single tokens of the model, and answers that are single tokens after the prompt.

        Raises:
            SaescopeError: the remaining words don't give enough pairs.
        """
        length = self._usual_length(model, seed)
        return self._part(model, 0, n_train, seed, length), self._part(model, 1, n_held_out, seed, length)

    def _part(self, model: Model, part: int, n: int, seed: int, length: int | None) -> list[Pair]:
        """Distinct pairs whose prompts have this length."""
        random, words = Random(f"{self.name} {seed} {part}"), self._words(model, part, seed)
        found: dict[str, Pair] = {}
        misses = 0 if length is not None else _MISSES
        while len(found) < n and misses < _MISSES:
            pair, misses = self.pair(random, words, len(found) % self.n_cases), misses + 1
            if pair.clean not in found:
                pair, n_ctx = fitted(pair, model)
                if n_ctx == length:
                    found[pair.clean], misses = pair, 0
        if len(found) == n:
            return list(found.values())
        kind = "held-out" if part else "training"
        raise SaescopeError(
            f"{self.name} has only {len(found)} {kind} pairs whose words are single tokens of {model.name}, and {n} were "
            "asked for: ask for fewer, or give your own pairs."
        )

    def _usual_length(self, model: Model, seed: int) -> int | None:
        """Most common length of training prompts; None if no pair fits."""
        random, words = Random(f"{self.name} {seed}"), self._words(model, 0, seed)
        if any(len(list_) < 2 for kind in (words, self._words(model, 1, seed)) for list_ in kind.values()):
            return None
        drawn = [fitted(self.pair(random, words, i % self.n_cases), model)[1] for i in range(_N_SAMPLED)]
        lengths = Counter(length for length in drawn if length is not None)
        return min(lengths, key=lambda length: (-lengths[length], length), default=None)

    def _words(self, model: Model, part: int, seed: int) -> Words:
        """Words of one half (training or held-out) that are single tokens."""
        words = {**{kind: _half(list_, part, seed) for kind, list_ in self.words.items()}, **self.shared}
        return {kind: single_tokens(list_, model) for kind, list_ in words.items()}


def _half(words: Sequence[Word], part: int, seed: int) -> list[Word]:
    """Every second word, in a random order given by the seed."""
    return Random(seed).sample(list(words), len(words))[part::2]


def single_tokens(words: Sequence[Word], model: Model) -> list[Word]:
    """Words whose forms are all single tokens when they follow another word."""
    forms = list(dict.fromkeys(form for word in words for form in word))
    single = {form for form, token in zip(forms, answer_tokens(model, "The", [f" {f}" for f in forms]), strict=True)
              if token is not None}
    return [word for word in words if single.issuperset(word)]


def fitted(pair: Pair, model: Model) -> tuple[Pair, int | None]:
    """The pair with its single-token answers only, and its prompts' length; None if the pair can't be used."""
    assert pair.corrupt is not None
    clean, corrupt = encode(model, [pair.clean, pair.corrupt])
    answers = pair.right + pair.wrong
    one = {a for a, token in zip(answers, answer_tokens(model, pair.clean, answers), strict=True) if token is not None}
    pair = replace(
        pair, right=tuple(a for a in pair.right if a in one), wrong=tuple(a for a in pair.wrong if a in one)
    )
    return pair, len(clean) if len(clean) == len(corrupt) and pair.right and pair.wrong else None
