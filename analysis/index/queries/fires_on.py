"""The tokens that a feature fires on, by their share of its active rows: what names a feature that has no label."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from analysis.index.types import TokenShare

if TYPE_CHECKING:
    from analysis.index import Index

N_ROWS = 65_536
"""Active rows that are counted: all, or of a feature with more every n-th, and a share may be off by half a point."""


def fires_on(index: "Index", feature: int, n: int = 3) -> tuple[TokenShare, ...]:
    """The tokens at which a feature is active most often, the most frequent first; ties by text.

    Spaces around a word do not count: ` return` and `return` are one. Where contexts are images, it is their names that
    are counted, such as classes. Empty for a feature that never fires, and for an index without text or names that recur.

    Raises:
        SaescopeError: there is no such feature.
    """
    position = index.positions(feature)
    vocabulary = index.vocabulary
    if not len(position) or (vocabulary is None and 2 * len(set(index.names)) >= len(index.names)):
        return ()
    position = position[:: -(-len(position) // N_ROWS)]
    by_text: dict[str, int] = {}
    if vocabulary is None:
        by_text = Counter(index.names[seq] for seq in (position // index.n_ctx).tolist())
        return _first(by_text, n, len(position))
    ids = index.tokens.reshape(-1)[position]
    token, counts = np.unique(ids, return_counts=True)
    for t, n_rows in zip(token.tolist(), counts.tolist(), strict=True):
        text = vocabulary.text(t)
        text = text.strip(" ") or text
        by_text[text] = by_text.get(text, 0) + n_rows
    return _first(by_text, n, len(ids))


def _first(by_text: dict[str, int], n: int, n_rows: int) -> tuple[TokenShare, ...]:
    first = sorted(by_text.items(), key=lambda item: (-item[1], item[0]))[:n]
    return tuple(TokenShare(text, count / n_rows) for text, count in first)
