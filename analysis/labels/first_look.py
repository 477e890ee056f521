"""Choose a good first feature to show: one with a clear pattern and a label that holds on held-out examples."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.labels.store import Labels

FEWEST = 20
"""Minimum number of active rows."""
SPREAD = 20
"""Minimum number of contexts it is active in, to exclude features of a single document."""

WORD = re.compile("[^`]*`[^`]*[^\\W\\d_]{3}")
"""Matches labels whose first token is a word, which is more telling than a space or a bracket."""


def good_first(index: "Index", labels: "Labels") -> int:
    """The feature whose label beats its baseline by most, among those that fire often enough but not everywhere.

    Labels that start with a word come first. Without labels, the feature with the highest kurtosis; if none qualifies, the
    most active one, or 0. Ties go to the lower number.
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
