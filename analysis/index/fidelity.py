"""FVE of the codes in an index: a check that they belong to the right rows, and a metric for the corpus."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from analysis.corpus_rows import CorpusRows
from analysis.index.encode import BLOCK_ROWS, Codes
from sae.code import OffsetCode, SparseCode
from sae.metrics import FVE


@torch.no_grad()
def fidelity(rows: CorpusRows, codes: Codes) -> dict[str, Any]:
    """FVE of the target from the stored codes, in raw units over kept rows.

    It uses held-out sequences, a twentieth of the cost; or all sequences if none with kept rows is held out.

    Returns:
        `fve` (None if the target has no variance), the `n_rows` and `n_seqs` used, and whether they are `held_out`.
    """
    sae = rows.trained.sae
    kept = np.asarray(codes.kept.reshape(rows.n_seqs, rows.n_ctx).any(axis=1))
    own = rows.data.tokens.side(held_out=True)
    held = own.sequences(held_out=True)
    held = held[held < rows.n_seqs]
    held = held[kept[held]]
    seqs = held if len(held) else np.flatnonzero(kept)
    fve = FVE(1, sae.target.mean.cpu())
    block = max(1, BLOCK_ROWS // rows.n_ctx)
    for start in range(0, len(seqs), block):
        some = seqs[start : start + block]
        acts, keep = rows.read(some)
        x, target = rows.trained.rows({hook: every[keep] for hook, every in acts.items()})
        code = _stored(codes, some, keep, rows.n_ctx, sae.d_sae, sae.W_dec.device)
        if sae.has_offsets:
            offset = sae.encode(x)
            assert isinstance(offset, OffsetCode) and offset.offset is not None
            code = OffsetCode.around(code, offset.offset)
        x_hat = sae.decode(code)
        if len(held):  # the split may cut through a sequence
            mine = torch.from_numpy(own.eligible[some].reshape(-1))[keep].to(target.device)
            target, x_hat = target[mine], x_hat[mine]
        fve.add(torch.zeros(len(target), dtype=torch.long), target, x_hat)
    value = fve.value()
    return {
        "fve": value if math.isfinite(value) else None, "n_rows": int(fve.rows.sum()), "n_seqs": len(seqs),
        "held_out": bool(len(held)),
    }


def _stored(
    codes: Codes, seqs: Int64[np.ndarray, " n"], keep: Bool[Tensor, " n_rows"], n_ctx: int, d_sae: int,
    device: torch.device,
) -> SparseCode:
    """The stored code of the kept rows of these sequences."""
    spans = [slice(*codes.indptr[[seq * n_ctx, (seq + 1) * n_ctx]]) for seq in seqs]
    feature, value = (np.concatenate([array[span] for span in spans]) for array in (codes.feature, codes.value))
    starts = (seqs[:, None] * n_ctx + np.arange(n_ctx)).reshape(-1)[keep.numpy()]
    indptr = np.concatenate([[0], np.cumsum(codes.indptr[starts + 1] - codes.indptr[starts])])
    parts = (torch.from_numpy(array).to(device) for array in (feature, value, indptr))
    feature_, value_, indptr_ = parts
    return SparseCode(feature_, value_, len(starts), d_sae, indptr=indptr_)
