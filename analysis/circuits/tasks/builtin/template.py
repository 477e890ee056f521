"""Pairs drawn from a template until there are as many as asked for that fit a model's tokenizer."""

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
"""After so many draws without a new pair there are none left, or hardly any."""
_N_SAMPLED = 48
"""Pairs from which the usual length is found."""


@dataclass(frozen=True)
class Template:
    """How pairs of a behaviour are made.

    Attributes:
        name: of the behaviour.
        pair: fn of a random generator, the words, and the case, giving a pair.
        n_cases: cases that are taken in turn, so that each has the same share of the pairs.
        words: by kind; training and held-out pairs have none of these in common.
        shared: words that both have: those that carry no content of their own.
        metric: by name, what the behaviour is usually measured by.
    """

    name: str
    pair: Callable[[Random, Words, int], Pair]
    n_cases: int
    words: Words
    shared: Words = field(default_factory=dict)
    metric: str = "logit_difference"

    def draw(self, model: Model, n_train: int, n_held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
        """Training and held-out pairs: all different, all prompts of one length, a function of the seed.

        Only words that are single tokens of the model in all their forms are used, and of the answers those that are
        single tokens behind the prompt.

        Raises:
            SaescopeError: the words that are left do not make so many pairs.
        """
        length = self._usual_length(model, seed)
        return self._part(model, 0, n_train, seed, length), self._part(model, 1, n_held_out, seed, length)

    def _part(self, model: Model, part: int, n: int, seed: int, length: int | None) -> list[Pair]:
        """Different pairs whose prompts have this length."""
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
            f"{self.name} has {len(found)} {kind} pairs whose words are single tokens of {model.name}, and {n} are "
            "asked for: ask for fewer, or give pairs of your own."
        )

    def _usual_length(self, model: Model, seed: int) -> int | None:
        """The commonest length of a training prompt; None where no pair fits."""
        random, words = Random(f"{self.name} {seed}"), self._words(model, 0, seed)
        if any(len(list_) < 2 for kind in (words, self._words(model, 1, seed)) for list_ in kind.values()):
            return None
        drawn = [fitted(self.pair(random, words, i % self.n_cases), model)[1] for i in range(_N_SAMPLED)]
        lengths = Counter(length for length in drawn if length is not None)
        return min(lengths, key=lambda length: (-lengths[length], length), default=None)

    def _words(self, model: Model, part: int, seed: int) -> Words:
        """The words of one half that are single tokens."""
        words = {**{kind: _half(list_, part, seed) for kind, list_ in self.words.items()}, **self.shared}
        return {kind: single_tokens(list_, model) for kind, list_ in words.items()}


def _half(words: Sequence[Word], part: int, seed: int) -> list[Word]:
    """Every second word in an order of the seed's."""
    return Random(seed).sample(list(words), len(words))[part::2]


def single_tokens(words: Sequence[Word], model: Model) -> list[Word]:
    """Those that are one token, behind another word, in each of their forms."""
    forms = list(dict.fromkeys(form for word in words for form in word))
    single = {form for form, token in zip(forms, answer_tokens(model, "The", [f" {f}" for f in forms]), strict=True)
              if token is not None}
    return [word for word in words if single.issuperset(word)]


def fitted(pair: Pair, model: Model) -> tuple[Pair, int | None]:
    """The pair with those of its answers that are one token, and the length of its prompts; None if it cannot be used."""
    assert pair.corrupt is not None
    clean, corrupt = encode(model, [pair.clean, pair.corrupt])
    answers = pair.right + pair.wrong
    one = {a for a, token in zip(answers, answer_tokens(model, pair.clean, answers), strict=True) if token is not None}
    pair = replace(
        pair, right=tuple(a for a in pair.right if a in one), wrong=tuple(a for a in pair.wrong if a in one)
    )
    return pair, len(clean) if len(clean) == len(corrupt) and pair.right and pair.wrong else None
