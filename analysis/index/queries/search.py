"""Searching the text of all contexts, by a word or a regular expression.

Expressions come from addresses that anybody may send, and Python's own engine needs time exponential in the text for some
of them. RE2 (Cox 2010, "Regular expression matching in the wild") needs time linear in it, and a bounded program.
"""

import re
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, groupby
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int32

from analysis.index.types import Hit
from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError

LONGEST_PATTERN = 1000
"""Characters of what is looked for."""
MEMORY = 1 << 20
"""Bytes of an expression's program at most: `((a{99}){99}){99}` is refused rather than built."""
SECONDS = 10.0
"""A search by an expression that takes longer is given up."""
Spans = Callable[[bytes], Iterator[tuple[int, int]]]
"""The matches in a text, as spans of bytes."""


class Searcher:
    """The text of every context, put together on the first search and kept."""

    def __init__(self, tokens: Int32[np.ndarray, "n_seqs n_ctx"], vocabulary: Vocabulary) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary
        self._texts: list[bytes] | None = None
        self._lock = Lock()

    def search(self, text: str, *, regex: bool, n: int) -> list[Hit]:
        """The first n matches in corpus order; an empty match is none.

        Raises:
            SaescopeError: nothing to look for, no regular expression of RE2's syntax, or one that takes too long.
        """
        hits: list[Hit] = []
        for seq, found in self._found(text, regex=regex):
            hits += self._hits(seq, found)
            if len(hits) >= n:
                break
        return hits[: max(0, n)]

    def evenly(self, text: str, *, regex: bool, n: int) -> tuple[list[Hit], int]:
        """Matches spread evenly over all of them in corpus order, at most n, and how many there are.

        Of `total` matches these are the numbers floor((i + ½) · total / n): no part of the corpus counts for more.

        Raises:
            SaescopeError: as `search`.
        """
        seqs, counts = [], []
        for seq, found in self._found(text, regex=regex):
            seqs.append(seq)
            counts.append(len(found))
        total = sum(counts)
        n = min(max(0, n), total)
        wanted = (np.arange(n) * 2 + 1) * total // max(1, 2 * n)
        ends = np.cumsum(counts)
        spans = expression(text) if regex else _word(text)
        hits: list[Hit] = []
        for i, numbers in groupby(wanted.tolist(), key=lambda number: int(np.searchsorted(ends, number, side="right"))):
            found = list(spans(self.texts()[seqs[i]]))
            hits += self._hits(seqs[i], [found[number - int(ends[i]) + counts[i]] for number in numbers])
        return hits, total

    def _found(self, text: str, *, regex: bool) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Each context with a match, and the matches as spans of bytes."""
        if not text or len(text) > LONGEST_PATTERN:
            raise SaescopeError(
                f"{len(text):,} characters to search for; give a word or a regular expression of 1 to {LONGEST_PATTERN:,}.")
        spans = expression(text) if regex else _word(text)
        until = time.monotonic() + SECONDS
        for seq, whole in enumerate(self.texts()):
            if regex and time.monotonic() > until:
                raise SaescopeError(f"{text!r} takes longer than {SECONDS:g} s to search for; give a simpler expression.")
            if found := list(spans(whole)):
                yield seq, found

    def texts(self) -> list[bytes]:
        """The text of each context in UTF-8, as far as its bytes are that: none is lost."""
        with self._lock:
            if self._texts is None:
                self._texts = [b"".join(self._parts(seq)) for seq in range(len(self.tokens))]
            return self._texts

    def _parts(self, seq: int) -> list[bytes]:
        return [self.vocabulary.bytes_of(t) for t in self.tokens[seq].tolist()]

    def _hits(self, seq: int, spans: list[tuple[int, int]]) -> list[Hit]:
        """Spans of bytes as spans of tokens."""
        ends = np.array(list(accumulate(len(part) for part in self._parts(seq))))
        hits = []
        for start, stop in spans:
            position = int(np.searchsorted(ends, start, side="right"))
            hits.append(Hit(seq, position, int(np.searchsorted(ends, stop, side="left")) - position + 1))
        return hits


def _word(text: str) -> Spans:
    pattern = re.compile(re.escape(text.encode(errors="surrogatepass")))
    return lambda whole: (match.span() for match in pattern.finditer(whole))


def expression(text: str) -> Spans:
    """A regular expression that matches in time linear in the text.

    Raises:
        SaescopeError: it is none of RE2's syntax, or its program would be too large.
    """
    import re2

    options: Any = re2.Options()
    options.max_mem, options.log_errors = MEMORY, False
    try:
        pattern = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise SaescopeError(
            f"{text!r} is no regular expression ({reason}); the syntax is RE2's, without lookaround and backreferences."
        ) from None
    return lambda whole: (match.span() for match in pattern.finditer(whole) if match.end() > match.start())
