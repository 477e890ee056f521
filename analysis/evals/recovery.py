"""How well a dictionary recovers features that are known: pure functions of directions and codes.

Features of the truth and of the SAE are matched one to one so that the sum of |cosine| of their directions is largest
(the Hungarian method). Codes are signed: active means stored, and a direction may be found with its sign turned.

    F1     2 TP / (2 TP + FP + FN) of where a feature is present and where its match is active
    MCC    Matthews' correlation of the same two events
    MMC    max over the dictionary of |cosine|, matched or not (mean max cosine, Sharkey et al. 2022)

All three are means over the true features that occur; a feature without a match, in too narrow a dictionary, counts
with 0 for F1 and MCC.

Absorption (the effect of Chanin et al. 2409.14507, here against truth): of the rows in which a parent and its child are
present, the share in which the parent's match is silent, while the child's match is active and its direction contains
the parent: |cosine| of at least 0.3. Mean over pairs of parent and child that occur together. A child's match that has
parent's direction in it and is silent too, is a miss (F1 tells of it), no absorption.
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
"""|cosine| from which a direction contains another."""


@dataclass(frozen=True)
class Recovery:
    """Means over features, 0 to 1 (MCC from −1); None where nothing is to be averaged."""

    f1: float | None
    mcc: float | None
    mmc: float | None
    absorption: float | None

    def plain(self) -> dict[str, float | None]:
        """By name."""
        return asdict(self)


def recovery(
    directions: Float[Tensor, "d_sae d"], code: SparseCode, truth: Float[Tensor, "n_features d"],
    true_code: SparseCode, parents: Sequence[int],
) -> Recovery:
    """All figures.

    Args:
        directions: W_dec of the SAE.
        code: its code of some rows.
        truth: true directions.
        true_code: what those rows are made of.
        parents: of each true feature, −1 for none.
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
    """2 TP / (2 TP + FP + FN) from the counts of both events and of each."""
    return 2 * both / (n_there + n_active) if n_there + n_active else 0.0


def matthews(both: float, n_there: float, n_active: float, n: int) -> float:
    """Matthews' correlation of two events in n rows; 0 if one of them always or never happens."""
    spread = n_there * (n - n_there) * n_active * (n - n_active)
    return (both * n - n_there * n_active) / spread**0.5 if spread > 0 else 0.0


def absorption(
    there: Any, active: Any, cosine: Float[np.ndarray, "n_features d_sae"], matched: Int64[np.ndarray, " n_features"],
    parents: Sequence[int],
) -> float | None:
    """See the head of this file; `there` and `active` are `[n_rows, n]` sparse matrices of ones."""
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
    """Where a code is active: a sparse matrix `[n_rows, d_sae]` of ones, by columns."""
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
