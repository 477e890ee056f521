"""Searching the text of all contexts, by a word or a regular expression."""

import re
from itertools import accumulate
from threading import Lock

import numpy as np
from jaxtyping import Int32

from analysis.index.text import Vocabulary
from analysis.index.types import Hit
from sae.errors import SaescopeError


class Searcher:
    """The text of every context, put together on the first search and kept."""

    def __init__(self, tokens: Int32[np.ndarray, "n_seqs n_ctx"], vocabulary: Vocabulary) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary
        self._texts: list[str] | None = None
        self._lock = Lock()

    def search(self, text: str, *, regex: bool, n: int) -> list[Hit]:
        """The first n matches in corpus order.

        Raises:
            SaescopeError: nothing to look for, or no regular expression.
        """
        if not text:
            raise SaescopeError("nothing to search for; give a word, or a regular expression.")
        try:
            pattern = re.compile(text if regex else re.escape(text))
        except (re.error, RecursionError) as error:
            raise SaescopeError(f"{text!r} is no regular expression ({error}).") from None
        hits: list[Hit] = []
        for seq, whole in enumerate(self.texts()):
            if len(hits) >= n:
                break
            found = [match.span() for match in pattern.finditer(whole) if match.end() > match.start()]
            if found:
                hits += self._hits(seq, whole, found)
        return hits[: max(0, n)]

    def texts(self) -> list[str]:
        """The text of each context; bytes that are no characters are lone surrogates, so that none is lost."""
        with self._lock:
            if self._texts is None:
                parts = (b"".join(self._parts(seq)) for seq in range(len(self.tokens)))
                self._texts = [whole.decode(errors="surrogateescape") for whole in parts]
            return self._texts

    def _parts(self, seq: int) -> list[bytes]:
        return [self.vocabulary.bytes_of(t) for t in self.tokens[seq].tolist()]

    def _hits(self, seq: int, whole: str, spans: list[tuple[int, int]]) -> list[Hit]:
        """Spans of characters as spans of tokens."""
        ends = np.array(list(accumulate(len(part) for part in self._parts(seq))))
        hits = []
        for start, stop in spans:
            first, last = (len(whole[:at].encode(errors="surrogateescape")) for at in (start, stop))
            position = int(np.searchsorted(ends, first, side="right"))
            hits.append(Hit(seq, position, int(np.searchsorted(ends, last, side="left")) - position + 1))
        return hits
