"""k-sparse probes: how well k features separate two classes of rows (Gurnee et al. 2305.01610; SAEBench 2503.09532).

Features are ranked by |mean of positive rows − mean of negative rows|, over the fitting rows only; a logistic probe
(`logistic`) is fitted to the top k. Codes may be signed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from analysis.evals.probes.logistic import L2, Probes, fit
from sae.code import SparseCode


def matrix(code: SparseCode) -> Any:
    """A code as a scipy CSR array `[n_rows, d_sae]` in fp64."""
    from scipy.sparse import csr_array

    code = code.csr()
    assert code.indptr is not None
    parts = (code.value.detach().double(), code.feature, code.indptr)
    return csr_array(tuple(part.cpu().numpy() for part in parts), shape=(code.n_rows, code.d_sae))


def mean_difference(
    codes: Any, y: Bool[np.ndarray, "n n_probes"], used: Bool[np.ndarray, "n n_probes"]
) -> Float[np.ndarray, "n_probes d_sae"]:
    """Mean of each feature over positive rows minus its mean over negative rows, among those `used`.

    Args:
        codes: scipy array `[n, d_sae]`.
        y: mask of positive rows.
        used: mask of rows that count.
    """
    from scipy.sparse import csr_array

    positive, negative = (y & used).astype(np.float64), (~y & used).astype(np.float64)
    contrast = positive / positive.sum(0).clip(min=1) - negative / negative.sum(0).clip(min=1)
    return (csr_array(contrast.T) @ codes).toarray()


def deviation(codes: Any) -> Float[np.ndarray, " d_sae"]:
    """Standard deviation of each feature over rows (divided by n); 1 for constant features."""
    mean = np.asarray(codes.mean(0)).reshape(-1)
    square = np.asarray(codes.multiply(codes).mean(0)).reshape(-1)
    found = np.sqrt((square - mean**2).clip(min=0))
    return np.where(found > 1e-12, found, 1.0)


def ranked(scores: Float[np.ndarray, " d_sae"], n: int) -> Int64[np.ndarray, " n_best"]:
    """The n features with the largest |score|; ties keep their order."""
    return np.argsort(-np.abs(scores), kind="stable")[:n].astype(np.int64)


@dataclass(frozen=True)
class SparseProbe:
    """A probe on a few features."""

    features: Int64[np.ndarray, " k"]
    probe: Probes

    def logits(self, codes: Any) -> Float[Tensor, " n"]:
        """Log odds of the positive class for rows of codes `[n, d_sae]`."""
        return self.probe.logits(dense(codes, self.features))[:, 0]


def dense(codes: Any, features: Int64[np.ndarray, " k"]) -> Float[Tensor, "n k"]:
    """Selected features of a scipy array of codes, as a dense tensor."""
    return torch.from_numpy(np.asarray(codes[:, features].todense(), dtype=np.float64))


def sparse_probe(
    codes: Any, y: Bool[np.ndarray, " n"], features: Int64[np.ndarray, " k"], *, l2: float = L2
) -> SparseProbe:
    """Fit a balanced probe on these features."""
    return SparseProbe(features, fit(dense(codes, features), torch.from_numpy(y)[:, None], l2=l2))


def sparse_probes(
    codes: Any, y: Bool[np.ndarray, " n"], ks: Sequence[int], *, l2: float = L2
) -> dict[int, SparseProbe]:
    """For each k, a probe on the k features with the largest difference of class means."""
    order = ranked(mean_difference(codes, y[:, None], np.ones_like(y)[:, None])[0], max(ks))
    return {k: sparse_probe(codes, y, order[:k], l2=l2) for k in ks}
