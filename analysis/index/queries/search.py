"""Search the text of all contexts for a string or a regular expression.

Expressions come from URLs, which are untrusted, and Python's own engine takes exponential time for some of them. RE2
(Cox 2010, "Regular expression matching in the wild") runs in linear time with a bounded program.
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
"""Maximum length of the search text in characters."""
MEMORY = 1 << 20
"""Maximum size of a compiled expression in bytes: `((a{99}){99}){99}` is refused."""
SECONDS = 10.0
"""Time limit of a regular expression search."""
Spans = Callable[[bytes], Iterator[tuple[int, int]]]
"""A function from a text to its matches as byte spans."""


class Searcher:
    """The text of every context, built on the first search and cached."""

    def __init__(self, tokens: Int32[np.ndarray, "n_seqs n_ctx"], vocabulary: Vocabulary) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary
        self._texts: list[bytes] | None = None
        self._lock = Lock()

    def search(self, text: str, *, regex: bool, n: int) -> list[Hit]:
        """The first n matches in corpus order; empty matches are ignored.

        Raises:
            SaescopeError: the text is empty or too long, not a valid RE2 expression, or the search takes too long.
        """
        hits: list[Hit] = []
        for seq, found in self._found(text, regex=regex):
            hits += self._hits(seq, found)
            if len(hits) >= n:
                break
        return hits[: max(0, n)]

    def evenly(self, text: str, *, regex: bool, n: int) -> tuple[list[Hit], int]:
        """At most n evenly spaced matches in corpus order, and the total number of matches.

        They are the matches numbered floor((i + ½) · total / n), so that all parts of the corpus are represented equally.

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
        """Each context with a match, and its matches as byte spans."""
        if not text or len(text) > LONGEST_PATTERN:
            raise SaescopeError(
                f"the search text has {len(text):,} characters; it must have 1 to {LONGEST_PATTERN:,}.")
        spans = expression(text) if regex else _word(text)
        until = time.monotonic() + SECONDS
        for seq, whole in enumerate(self.texts()):
            if regex and time.monotonic() > until:
                raise SaescopeError(f"the search for {text!r} took longer than {SECONDS:g} s; use a simpler expression.")
            if found := list(spans(whole)):
                yield seq, found

    def texts(self) -> list[bytes]:
        """The bytes of each context: UTF-8 where valid; no byte is lost."""
        with self._lock:
            if self._texts is None:
                self._texts = [b"".join(self._parts(seq)) for seq in range(len(self.tokens))]
            return self._texts

    def _parts(self, seq: int) -> list[bytes]:
        return [self.vocabulary.bytes_of(t) for t in self.tokens[seq].tolist()]

    def _hits(self, seq: int, spans: list[tuple[int, int]]) -> list[Hit]:
        """Convert byte spans to token spans."""
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
    """Compile a regular expression with linear-time matching.

    Raises:
        SaescopeError: it isn't valid RE2 syntax, or its program would be too large.
    """
    import re2

    options: Any = re2.Options()
    options.max_mem, options.log_errors = MEMORY, False
    try:
        pattern = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise SaescopeError(
            f"{text!r} is not a regular expression ({reason}); the syntax is RE2's, without lookaround or backreferences."
        ) from None
    return lambda whole: (match.span() for match in pattern.finditer(whole) if match.end() > match.start())
