"""The words around a feature against the words of the corpus: what an automatic label is made of.

A *row* is one token's place in the corpus, counted through it. *Words* are tokens up to case and the space around them, so
that ` import`, `import` and ` Import` count together. A *place* says where to look from a row: at the token itself, at its
neighbours, or anywhere in the `NEAR` tokens before it. Rows that training dropped are no examples, but are read as words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

if TYPE_CHECKING:
    from analysis.index import Index

NEAR = 16
PLACES = {"token": 0, "after": -1, "two after": -2, "before": 1, "near": None}
"""Offset of each place; None for anywhere in the `NEAR` tokens before."""
NONE = -1
"""The word beyond either end of a context."""

ACCIDENT = 1e-4
"""Chance (one-sided) from which a word is put down to accident; some of thousands of words always look good."""


@dataclass(frozen=True)
class Condition:
    """One of these words stands at this place."""

    place: str
    words: tuple[int, ...]


class Words:
    """A corpus as words, with their counts at each place over the rows that labels are made from."""

    def __init__(self, index: "Index") -> None:
        """Labels are made from documents of even number; those of odd number are held out to judge them.

        Documents, because what one says in one context it says again in the next. Where none are known (activations
        without text, an index of before they were kept) it is contexts.
        """
        self.index = index
        self.n_seqs, self.n_ctx = index.n_seqs, index.n_ctx
        self.names, of_token = _words(index)
        tokens = np.asarray(index.tokens)
        self.words: Int32[np.ndarray, "n_seqs n_ctx"] = of_token[tokens]
        self.kept: Bool[np.ndarray, " n_rows"] = np.asarray(index.arrays["kept"]).reshape(-1).astype(bool)
        unit = index.arrays.get("unit", np.arange(self.n_seqs).repeat(self.n_ctx))
        self.made_from: Bool[np.ndarray, " n_rows"] = np.asarray(unit).reshape(-1) % 2 == 0

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {_key(name): i for i, name in enumerate(self.names)}

    def spelt(self, spellings: Sequence[str]) -> list[int]:
        """The words that are spelt so, up to case and space, each once."""
        found = (self._numbers.get(_key(text)) for text in spellings)
        return list(dict.fromkeys(number for number in found if number is not None))

    @cached_property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """The kept rows that labels are made from."""
        return np.flatnonzero(self.kept & self.made_from)

    @cached_property
    def counts(self) -> dict[str, Int64[np.ndarray, " n_words"]]:
        """At how many of `rows` each word stands at each place."""
        return {place: self.count(self.rows, place) for place in PLACES}

    def at(self, rows: Int64[np.ndarray, " n"], place: str) -> Int32[np.ndarray, "n m"]:
        """The words at a place seen from each row, `NONE` beyond the context; m is 1, or `NEAR`."""
        seq, position = np.divmod(rows, self.n_ctx)
        offset = PLACES[place]
        offsets = np.arange(-NEAR, 0) if offset is None else np.array([offset])
        where = position[:, None] + offsets
        inside = (where >= 0) & (where < self.n_ctx)
        return np.where(inside, self.words[seq[:, None], where.clip(0, self.n_ctx - 1)], NONE).astype(np.int32)

    def count(self, rows: Int64[np.ndarray, " n"], place: str) -> Int64[np.ndarray, " n_words"]:
        """At how many of some rows each word stands at a place; a word counts once a row."""
        out = np.zeros(len(self.names), dtype=np.int64)
        for start in range(0, len(rows), 65_536):
            found = np.sort(self.at(rows[start : start + 65_536], place), axis=1)
            first = np.ones(found.shape, dtype=bool)
            first[:, 1:] = found[:, 1:] != found[:, :-1]
            out += np.bincount(found[first & (found != NONE)], minlength=len(out))
        return out

    def holds(self, condition: Condition, rows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """For which rows a condition is true."""
        found = np.isin(self.at(rows, condition.place), np.asarray(condition.words, dtype=np.int32))
        return np.logical_or.reduce(found, axis=1)


def chance(
    inside: Int64[np.ndarray, " n"], n_inside: int, everywhere: Int64[np.ndarray, " n"], n_everywhere: int
) -> Float64[np.ndarray, " n"]:
    """How likely a word stands at so many rows of a group, or more, if the group were drawn at random: Fisher's exact test.

    Args:
        inside: rows of the group at which each word stands.
        n_inside: rows of the group.
        everywhere: the same over all rows, the group's among them.
        n_everywhere: all rows.

    Returns:
        The probability; 1 for words that stand there no more often than in the mean of such draws.
    """
    if not len(inside):
        return np.zeros(0)
    most = np.minimum(n_inside, everywhere)
    # the first term of the tail, then each from the one before: many times as fast as scipy.stats.hypergeom.sf
    term = np.exp(_log_choose(everywhere, inside) + _log_choose(n_everywhere - everywhere, n_inside - inside)
                  - _log_choose(n_everywhere, n_inside))
    total = term.copy()
    for x in (inside + step for step in range(int((most - inside).max()))):
        ratio = (everywhere - x) * (n_inside - x) / ((x + 1) * (n_everywhere - everywhere - n_inside + x + 1.0))
        term = np.where(x < most, term * ratio, 0.0)
        total += term
        if (term <= 1e-12 * total).all():
            break
    return np.where(inside * n_everywhere > n_inside * everywhere, np.minimum(total, 1.0), 1.0)


def _log_choose(n: Any, k: Any) -> Any:
    """log C(n, k)."""
    from scipy.special import betaln

    return -betaln(n - k + 1, k + 1) - np.log(n + 1)


def best_words(
    inside: Int64[np.ndarray, " n"], n_inside: int, everywhere: Int64[np.ndarray, " n"], n_everywhere: int,
    *, most: int, least_gain: float,
) -> list[int]:
    """The few words that tell a group's rows from the others best: those with the largest gain, if it is no accident.

    A word's gain is the share of the group's rows at which it stands, less the share of the others: what it adds to
    Youden's J of "one of these words stands there".
    """
    if not n_inside or n_inside == n_everywhere:
        return []
    gain = inside / n_inside - (everywhere - inside) / (n_everywhere - n_inside)
    found = np.flatnonzero(gain >= least_gain)
    found = found[np.lexsort((found, -gain[found]))]
    best: list[int] = []
    # the test is slow, and the first few candidates mostly pass it
    for start in range(0, len(found), most):
        some = found[start : start + most]
        best += some[chance(inside[some], n_inside, everywhere[some], n_everywhere) < ACCIDENT].tolist()
        if len(best) >= most:
            break
    return best[:most]


def _words(index: "Index") -> tuple[list[str], Int32[np.ndarray, " d_vocab"]]:
    """The spelling of each word, and the word of each token; the spelling is its most frequent token's.

    Frequencies are those of the half that labels are made from.
    """
    tokens = np.asarray(index.tokens)
    counts = np.bincount(tokens[::2].reshape(-1), minlength=int(tokens.max()) + 1)
    texts = [index.vocabulary.text(t) for t in range(len(counts))] if index.vocabulary is not None else [
        f"#{t}" for t in range(len(counts))]
    numbers: dict[str, int] = {}
    of_token = np.zeros(len(counts), dtype=np.int32)
    for token in np.argsort(-counts, kind="stable").tolist():
        text = texts[token]
        of_token[token] = numbers.setdefault(_key(text), len(numbers))
    spelling = [""] * len(numbers)
    for token in np.argsort(counts, kind="stable").tolist():
        spelling[of_token[token]] = texts[token]
    return spelling, of_token


def _key(text: str) -> str:
    """What the spellings of one word have in common."""
    return text.strip().casefold() or text
