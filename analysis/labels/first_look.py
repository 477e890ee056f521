"""Which feature to show somebody first: one whose label holds on held-out examples, and whose pattern can be seen."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.labels.store import Labels

FEWEST = 20
"""Active rows below which there is no pattern to see."""
SPREAD = 20
"""Contexts that it is active in, at least: not one document's own."""

WORD = re.compile("[^`]*`[^`]*[^\\W\\d_]{3}")
"""A label whose first token is a word, which says more to a newcomer than a space or a bracket."""


def good_first(index: "Index", labels: "Labels") -> int:
    """The feature with the largest lead of its label over another's, of those that fire often enough, and not everywhere.

    Labels that begin with a word go before others. Without labels the one whose values have the heaviest tail; where none
    fires, 0. Ties go to the lower number.
    """
    where = f"n_active >= {FEWEST} AND n_contexts >= {SPREAD} AND density < 0.01"
    fitting = index.top("kurtosis", where=where, limit=index.d_sae, columns=["feature"])["feature"].to_pylist()
    if not fitting:
        alive = index.top("n_active", where="n_active > 0", limit=1, columns=["feature"])["feature"].to_pylist()
        return int(alive[0]) if alive else 0
    rank = {
        one.feature: (WORD.match(one.text) is None, one.baseline - one.score, one.feature) for one in labels.all()
        if one.score is not None and one.baseline is not None
    }
    known = [feature for feature in fitting if feature in rank]
    return min(known, key=rank.__getitem__) if known else int(fitting[0])
