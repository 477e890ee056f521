"""Recovery of known features by a dictionary: pure functions of directions and codes.

True and SAE features are matched one to one, maximising the sum of |cosine| of their directions (Hungarian algorithm).
Codes are signed: active means stored, and a direction may be recovered with the opposite sign.

    F1     2 TP / (2 TP + FP + FN) of "feature present" and "match active"
    MCC    Matthews correlation of the same two events
    MMC    max |cosine| over the dictionary, matched or not (mean max cosine, Sharkey et al. 2022)

All three are means over the true features that occur; features without a match (dictionary too narrow) count as 0 for F1
and MCC.

Absorption (after Chanin et al. 2409.14507, here against ground truth): among rows where a parent and its child are both
present, the share where the parent's match is inactive while the child's match is active and its direction contains the
parent (|cosine| ≥ 0.3). Mean over parent–child pairs that occur together. If the child's match is inactive too, that is a
miss (which F1 counts), not absorption.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.matching import cosines, match
from sae.code import SparseCode

CONTAINS = 0.3
"""Minimum |cosine| for a direction to count as containing another."""


@dataclass(frozen=True)
class Recovery:
    """Means over features, 0 to 1 (MCC from −1); None if there is nothing to average."""

    f1: float | None
    mcc: float | None
    mmc: float | None
    absorption: float | None

    def plain(self) -> dict[str, float | None]:
        """Values by name."""
        return asdict(self)


def recovery(
    directions: Float[Tensor, "d_sae d"], code: SparseCode, truth: Float[Tensor, "n_features d"],
    true_code: SparseCode, parents: Sequence[int],
) -> Recovery:
    """Compute all recovery metrics.

    Args:
        directions: W_dec of the SAE.
        code: the SAE's code of some rows.
        truth: true directions.
        true_code: the true code of the same rows.
        parents: parent of each true feature, −1 for none.
    """
    assert code.n_rows == true_code.n_rows, "codes of different rows"
    cosine = cosines(directions, truth)
    matched = match(cosine)
    there, active = support(true_code), support(code)
    together = (there.T @ active).toarray().astype(np.float64)
    n_there, n_active = (np.asarray(m.sum(0)).reshape(-1).astype(np.float64) for m in (there, active))
    occurs = n_there > 0
    pairs = [(f, int(m)) for f, m in enumerate(matched) if occurs[f]]
    f1 = [0.0 if m < 0 else f1_score(together[f, m], n_there[f], n_active[m]) for f, m in pairs]
    mcc = [0.0 if m < 0 else matthews(together[f, m], n_there[f], n_active[m], code.n_rows) for f, m in pairs]
    return Recovery(
        _mean(f1), _mean(mcc), _mean(np.abs(cosine).max(1)[occurs].tolist()),
        absorption(there, active, cosine, matched, parents),
    )


def f1_score(both: float, n_there: float, n_active: float) -> float:
    """F1 = 2 TP / (2 TP + FP + FN), from the joint count and the count of each event."""
    return 2 * both / (n_there + n_active) if n_there + n_active else 0.0


def matthews(both: float, n_there: float, n_active: float, n: int) -> float:
    """Matthews correlation of two events in n rows; 0 if either always or never happens."""
    spread = n_there * (n - n_there) * n_active * (n - n_active)
    return (both * n - n_there * n_active) / spread**0.5 if spread > 0 else 0.0


def absorption(
    there: Any, active: Any, cosine: Float[np.ndarray, "n_features d_sae"], matched: Int64[np.ndarray, " n_features"],
    parents: Sequence[int],
) -> float | None:
    """Absorption, see the module docstring; `there` and `active` are `[n_rows, n]` sparse matrices of ones."""
    shares = []
    for child, parent in enumerate(parents):
        if parent < 0:
            continue
        both = _column(there, child) & _column(there, parent)
        if not both.any():
            continue
        absorbs = matched[child] >= 0 and abs(cosine[parent, matched[child]]) >= CONTAINS
        silent = ~_column(active, int(matched[parent])) if matched[parent] >= 0 else np.ones_like(both)
        shares.append(float((both & silent & _column(active, int(matched[child]))).sum() / both.sum()) if absorbs else 0.0)
    return _mean(shares)


def support(code: SparseCode) -> Any:
    """Support of a code: a CSC matrix `[n_rows, d_sae]` of ones."""
    from scipy.sparse import csc_array

    code = code.csr()
    ones = np.ones(len(code.feature), dtype=np.int64)
    return csc_array((ones, (code.rows().numpy(), code.feature.numpy())), shape=(code.n_rows, code.d_sae))


def _column(matrix: Any, i: int) -> np.ndarray:
    out = np.zeros(matrix.shape[0], dtype=bool)
    out[matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]] = True
    return out


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
