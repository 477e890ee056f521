"""Dense codes on the GPU: decode and backward by GEMMs over all features.

A gather reads each active weight row once per use; a GEMM multiplies every feature. If gathers are bound by memory
bandwidth, a GEMM is faster above a density of (2 · bandwidth) / (bytes per number · FLOP/s of the GEMM), see
`DENSE_ABOVE`. Work is done in chunks of rows, like encoding, so dense activations never exceed a chunk. Sums are done by
the GEMM or in a fixed order: bitwise reproducible.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu.backward import CodeGrads
from sae.kernels.gpu.encode import Settings, matmul


def reconstruct(
    code: SparseCode, W: Float[Tensor, "d_sae d"], bias: Float32[Tensor, " d"] | None, ends: tuple[int, ...],
    settings: Settings,
) -> Float32[Tensor, "n_prefixes n_rows d"]:
    """`Σ value · W[feature] (+ bias)` per row, over the features below each prefix end."""
    out = torch.empty(len(ends), code.n_rows, W.shape[1], device=W.device)
    for rows, entries in chunks(code, settings):
        acts = settings.operand(written_out(code, code.value, rows, entries, places(code, rows, entries)))
        total = out.new_zeros(()) if bias is None else bias
        for level, (begin, end) in enumerate(segments(ends)):
            total = total + matmul(acts[:, begin:end], W[begin:end])
            out[level, rows] = total
    return out


def gradients(
    code: SparseCode, ends: tuple[int, ...], extra: Float32[Tensor, " nnz"] | None, x: Float[Tensor, "n_rows d_in"],
    dy: Float[Tensor, "n_segments n_rows d_out"], W_dec: Float[Tensor, "d_sae d_out"], settings: Settings,
) -> CodeGrads:
    """Value, weight and bias gradients; `dy` has one gradient per segment between prefix ends."""
    d_sae, d_out = W_dec.shape
    zeros = code.value.new_zeros
    dW_enc, dW_dec, db_enc = zeros(d_sae, x.shape[1]), zeros(d_sae, d_out), zeros(d_sae)
    dvalue = torch.zeros_like(code.value)
    for rows, entries in chunks(code, settings):
        place = places(code, rows, entries)
        acts = settings.operand(written_out(code, code.value, rows, entries, place))
        dacts = zeros(rows.stop - rows.start, d_sae)  # features beyond the last end only get `extra`
        for level, (begin, end) in enumerate(segments(ends)):
            dy_rows = settings.operand(dy[level, rows])
            dW_dec[begin:end] += matmul(acts[:, begin:end].t(), dy_rows)
            dacts[:, begin:end] = matmul(dy_rows, W_dec[begin:end].t())
        arrived = dacts.view(-1)[place] if extra is None else dacts.view(-1)[place] + extra[entries]
        # padding gets no gradient
        dvalue[entries] = torch.where(code.value[entries] != 0, arrived, 0.0)
        dpre = written_out(code, dvalue, rows, entries, place)
        db_enc += dpre.sum(0)
        dW_enc += matmul(settings.operand(dpre).t(), x[rows])
    return CodeGrads(dW_enc, dW_dec, db_enc, dvalue)


def chunks(code: SparseCode, settings: Settings) -> Iterator[tuple[slice, slice]]:
    """Chunks of rows with their entries. Several chunks of a CSR code need one device sync."""
    parts = list(settings.chunks(code.n_rows, code.d_sae))
    if len(parts) == 1:
        yield parts[0], slice(0, code.feature.numel())
        return
    starts = None if code.indptr is None else code.indptr.tolist()
    for rows in parts:
        first, last = (r * (code.k or 0) if starts is None else starts[r] for r in (rows.start, rows.stop))
        yield rows, slice(first, last)


def segments(ends: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ranges of features between prefix ends."""
    return list(zip((0, *ends[:-1]), ends, strict=True))


def places(code: SparseCode, rows: slice, entries: slice) -> Int64[Tensor, " n_entries"] | slice:
    """Flat indices of a chunk's entries in its dense activations."""
    if code.k == code.d_sae:
        return slice(None)  # all features are stored, in ascending order
    ids = torch.arange(rows.stop - rows.start, device=code.feature.device)
    lengths = (code.k or 0) if code.indptr is None else code.indptr[rows.start : rows.stop + 1].diff()
    row = torch.repeat_interleave(ids, lengths, output_size=entries.stop - entries.start)
    return row * code.d_sae + code.feature[entries]


def written_out(
    code: SparseCode, value: Float32[Tensor, " nnz"], rows: slice, entries: slice,
    place: Int64[Tensor, " n_entries"] | slice,
) -> Float32[Tensor, "n_chunk d_sae"]:
    """Dense values of a chunk. Features are unique in each row, including padding, because they were selected."""
    if isinstance(place, slice):
        return value[entries].view(-1, code.d_sae)
    dense = value.new_zeros((rows.stop - rows.start) * code.d_sae)
    return dense.index_put_((place,), value[entries]).view(-1, code.d_sae)
