"""The tokens that a feature fires on most, by share of its active rows: the name of an unlabelled feature."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from analysis.index.types import TokenShare

if TYPE_CHECKING:
    from analysis.index import Index

N_ROWS = 65_536
"""Maximum number of active rows counted; with more, every n-th is used, and a share may be off by half a point."""


def fires_on(index: "Index", feature: int, n: int = 3) -> tuple[TokenShare, ...]:
    """The tokens that a feature is most often active on, most frequent first; ties are broken by text.

    Surrounding spaces are ignored: ` return` and `return` are the same. For images, their names (such as classes) are
    counted instead. Empty for a feature that never fires, and for an index without text or recurring names.

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
