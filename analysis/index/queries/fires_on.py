"""The tokens that a feature fires on, by their share of its active rows: what names a feature that has no label."""

from typing import TYPE_CHECKING

import numpy as np

from analysis.index.types import TokenShare

if TYPE_CHECKING:
    from analysis.index import Index

N_ROWS = 65_536
"""Active rows that are counted: all, or of a feature with more every n-th, and a share may be off by half a point."""


def fires_on(index: "Index", feature: int, n: int = 3) -> tuple[TokenShare, ...]:
    """The tokens at which a feature is active most often, the most frequent first; ties by text.

    Spaces around a word do not count: ` return` and `return` are one. Empty for a feature that never fires, and for an
    index without text.

    Raises:
        SaescopeError: there is no such feature.
    """
    position = index.positions(feature)
    vocabulary = index.vocabulary
    if vocabulary is None or not len(position):
        return ()
    ids = index.tokens.reshape(-1)[position[:: -(-len(position) // N_ROWS)]]
    token, counts = np.unique(ids, return_counts=True)
    by_text: dict[str, int] = {}
    for t, n_rows in zip(token.tolist(), counts.tolist(), strict=True):
        text = vocabulary.text(t)
        text = text.strip(" ") or text
        by_text[text] = by_text.get(text, 0) + n_rows
    first = sorted(by_text.items(), key=lambda item: (-item[1], item[0]))[:n]
    return tuple(TokenShare(text, n_rows / len(ids)) for text, n_rows in first)
