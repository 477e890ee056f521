"""Which features represent which attributes: F1, occlusion and splitting (2405.08366, §4.3 and §5).

A feature is scored by the F1 of "feature active" as a predictor of "the attribute has one of these values". The best union
of values is found exactly: values are mutually exclusive, so it is a prefix in the order of P(active | value).

An attribute is *occluded* if a supervised dictionary captures it (its codes have non-zero norm) but no feature represents
it, while one represents an attribute with larger codes. It is *split* if its values are spread over several features that
are precise but rarely active.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

MOST_VALUES = 10
"""Maximum values in a union, also limited to a quarter of all values: a feature that is always active has an F1 of 0.4 with
a quarter of the rows, and 0.95 with nine tenths."""
STANDS_FOR = 0.8
"""Minimum F1 for a feature to represent an attribute's values (the paper uses 0.6 to 0.8; a feature that is always active
has 0.67 with one of two values)."""
RIGHT, COVERED = 0.9, 0.9
"""Minimum precision of the parts of a split value, and the share of its rows they must cover."""


@dataclass(frozen=True)
class Best:
    """The feature that best matches values of an attribute."""

    feature: int
    f1: float
    values: tuple[int, ...]


def counts(
    active: Bool[np.ndarray, "n d"] | Any, values: Int64[np.ndarray, " n"], n_values: int
) -> Float64[np.ndarray, "n_values d"]:
    """Number of rows with each value in which each feature is active; `active` may be a scipy array."""
    from scipy.sparse import csr_array

    one_hot = csr_array((np.ones(len(values)), (values, np.arange(len(values)))), shape=(n_values, len(values)))
    found = one_hot @ active.astype(np.float64)
    return found if isinstance(found, np.ndarray) else found.toarray()


def best_union(
    together: Float64[np.ndarray, " n_values"], of_value: Float64[np.ndarray, " n_values"], most: int | None = None
) -> tuple[float, tuple[int, ...]]:
    """The union of a few values that best matches a feature: its F1, and the values.

    Args:
        together: number of rows with each value in which the feature is active.
        of_value: number of rows with each value.
        most: maximum number of values; None for the default (`MOST_VALUES`).
    """
    most = max(1, min(MOST_VALUES, len(of_value) // 4)) if most is None else most
    n_active = together.sum()
    if not n_active:
        return 0.0, ()
    order = np.argsort(-together / of_value.clip(min=1), kind="stable")[:most]
    f1 = 2 * together[order].cumsum() / (n_active + of_value[order].cumsum())
    n = int(f1.argmax()) + 1
    return float(f1[n - 1]), tuple(sorted(int(v) for v in order[:n]))


def best_features(together: Float64[np.ndarray, "n_values d"], of_value: Float64[np.ndarray, " n_values"]) -> list[Best]:
    """For each value, the feature with the best F1."""
    n_active = together.sum(0)
    f1 = 2 * together / (n_active + of_value[:, None]).clip(min=1)
    return [Best(int(row.argmax()), float(row.max()), (value,)) for value, row in enumerate(f1)]


def explained(
    together: Float64[np.ndarray, "n_values d"], of_value: Float64[np.ndarray, " n_values"]
) -> Float64[np.ndarray, " d"]:
    """Best F1 of each feature with any union of values."""
    return np.array([best_union(column, of_value)[0] for column in together.T])


def occluded(norms: Float64[np.ndarray, " n_attributes"], f1: Float64[np.ndarray, " n_attributes"]) -> list[int]:
    """Attributes that no feature represents, although one represents an attribute with larger codes.

    Args:
        norms: norms of the attributes' supervised codes (root mean square over examples).
        f1: best F1 of any feature with each attribute.
    """
    found = norms[f1 >= STANDS_FOR]
    return [a for a in range(len(norms)) if f1[a] < STANDS_FOR and norms[a] > 0 and (found > norms[a]).any()]


def n_parts(active: Bool[np.ndarray, "n d"], present: Bool[np.ndarray, " n"]) -> int | None:
    """Number of features a value is split into: 1 if a single one covers it; None if precise features don't cover it.

    Greedy set cover with features of precision at least 0.9, until they cover 0.9 of the rows with the value.
    """
    inside = active[present].astype(np.int64)
    fires = active.sum(0)
    right = (fires > 0) & (inside.sum(0) >= RIGHT * fires)
    open_, n = np.ones(len(inside), dtype=bool), 0
    while len(inside) and open_.mean() > 1 - COVERED + 1e-9:
        gain = np.where(right, inside[open_].sum(0), 0)
        if not gain.max(initial=0):
            return None
        open_ &= inside[:, int(gain.argmax())] == 0
        n += 1
    return n
