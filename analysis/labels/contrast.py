"""Word statistics around a feature's active rows compared to the corpus, from which automatic labels are built.

A *row* is a token position, numbered through the corpus. *Words* are tokens up to case and surrounding spaces, so
` import`, `import` and ` Import` count together. A *place* is where to look relative to a row: the token itself, its
neighbours, or anywhere in the `NEAR` tokens before it. Masked rows are not examples, but are read as words.
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
"""Offset of each place; None means anywhere in the `NEAR` tokens before."""
NONE = -1
"""Placeholder for positions outside the context."""

ACCIDENT = 1e-4
"""One-sided p-value threshold for a word; strict, as thousands of words are tested."""


@dataclass(frozen=True)
class Condition:
    """One of these words occurs at this place."""

    place: str
    words: tuple[int, ...]


class Words:
    """A corpus as words, with their counts at each place over the labelling half."""

    def __init__(self, index: "Index") -> None:
        """Labels are built from even-numbered documents; odd-numbered ones are held out for scoring.

        The split is by document because contexts of one document repeat each other. If documents are unknown
        (activations without text, older indexes), it is by context.
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
        """The words with these spellings, up to case and spaces, without duplicates."""
        found = (self._numbers.get(_key(text)) for text in spellings)
        return list(dict.fromkeys(number for number in found if number is not None))

    @cached_property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """Kept rows of the labelling half."""
        return np.flatnonzero(self.kept & self.made_from)

    @cached_property
    def counts(self) -> dict[str, Int64[np.ndarray, " n_words"]]:
        """For each place, the number of `rows` with each word."""
        return {place: self.count(self.rows, place) for place in PLACES}

    def at(self, rows: Int64[np.ndarray, " n"], place: str) -> Int32[np.ndarray, "n m"]:
        """Words at a place relative to each row, `NONE` outside the context; m is 1 or `NEAR`."""
        seq, position = np.divmod(rows, self.n_ctx)
        offset = PLACES[place]
        offsets = np.arange(-NEAR, 0) if offset is None else np.array([offset])
        where = position[:, None] + offsets
        inside = (where >= 0) & (where < self.n_ctx)
        return np.where(inside, self.words[seq[:, None], where.clip(0, self.n_ctx - 1)], NONE).astype(np.int32)

    def count(self, rows: Int64[np.ndarray, " n"], place: str) -> Int64[np.ndarray, " n_words"]:
        """The number of rows with each word at a place; a word counts once per row."""
        out = np.zeros(len(self.names), dtype=np.int64)
        for start in range(0, len(rows), 65_536):
            found = np.sort(self.at(rows[start : start + 65_536], place), axis=1)
            first = np.ones(found.shape, dtype=bool)
            first[:, 1:] = found[:, 1:] != found[:, :-1]
            out += np.bincount(found[first & (found != NONE)], minlength=len(out))
        return out

    def holds(self, condition: Condition, rows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Mask of rows for which a condition is true."""
        found = np.isin(self.at(rows, condition.place), np.asarray(condition.words, dtype=np.int32))
        return np.logical_or.reduce(found, axis=1)


def chance(
    inside: Int64[np.ndarray, " n"], n_inside: int, everywhere: Int64[np.ndarray, " n"], n_everywhere: int
) -> Float64[np.ndarray, " n"]:
    """One-sided p-values of Fisher's exact test that words are over-represented in a group of rows.

    Args:
        inside: number of group rows with each word.
        n_inside: number of group rows.
        everywhere: number of all rows (including the group) with each word.
        n_everywhere: number of all rows.

    Returns:
        The p-values; 1 for words that are not more frequent than expected.
    """
    if not len(inside):
        return np.zeros(0)
    most = np.minimum(n_inside, everywhere)
    # compute the first term of the tail, then the others recursively: much faster than scipy.stats.hypergeom.sf
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
    """The words that best separate a group's rows from the others: largest significant gains first.

    A word's gain is the share of group rows with it minus the share of other rows with it: what it adds to Youden's J of
    "one of these words occurs there".
    """
    if not n_inside or n_inside == n_everywhere:
        return []
    gain = inside / n_inside - (everywhere - inside) / (n_everywhere - n_inside)
    found = np.flatnonzero(gain >= least_gain)
    found = found[np.lexsort((found, -gain[found]))]
    best: list[int] = []
    # the test is slow, and the first few candidates usually pass
    for start in range(0, len(found), most):
        some = found[start : start + most]
        best += some[chance(inside[some], n_inside, everywhere[some], n_everywhere) < ACCIDENT].tolist()
        if len(best) >= most:
            break
    return best[:most]


def _words(index: "Index") -> tuple[list[str], Int32[np.ndarray, " d_vocab"]]:
    """The spelling of each word, and the word of each token; a word is spelt like its most frequent token.

    Frequencies are counted over even-numbered contexts.
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
    """Normalised spelling of a word."""
    return text.strip().casefold() or text
