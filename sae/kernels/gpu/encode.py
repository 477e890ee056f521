"""Encode and select on the GPU in chunks of rows: no n_rows × d_sae tensor larger than a chunk is allocated.

In fp32, scores come from an fp32 GEMM (TF32 only if the process has enabled it in torch). In bf16, the GEMM multiplies
bf16 and accumulates in fp32. For the TopK family it returns bf16 scores that nominate k features per row plus a margin;
those that could be among the k are re-scored in fp32 for the final selection. So values are exact in fp32, and so is the
selection unless bf16 has misplaced a feature by more than the margin. Threshold selection uses fp32 results of the product
and a margin on scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import BFloat16, Bool, Float, Float32, Int, Int32, Int64
from torch import Tensor

from sae.code import SparseCode, from_pairs
from sae.kernels.gpu import batch, operands, products
from sae.kernels.gpu import select as gpu_select
from sae.kernels.gpu.operands import Eight
from sae.kernels.interface import Select

Pairs = tuple[Tensor, Tensor, Tensor]
"""Row (int64), feature (int32) and score (fp32) of entries, sorted by row and feature."""


DENSE_ABOVE = {"bf16": 1 / 184, "fp32": 1 / 20}
"""Break-even densities from memory bandwidth and tensor (or fp32) throughput of an H100 or H200, without cache hits."""


@dataclass(frozen=True)
class Settings:
    """Settings of the GPU backend."""

    precision: Literal["fp32", "bf16"] = "fp32"
    chunk_bytes: int = 1 << 30
    """Maximum bytes of scores held at once (at least one row)."""
    margin: int = 8
    """bf16: extra candidates per row beyond k, plus k / 8."""
    eight: bool = False
    """bf16: candidates of TopK and BatchTopK in training come from an fp8 product (e4m3, a scale per row)."""
    margin_of_eight: int = 32
    """Extra candidates per row with fp8, or k / 2 if that is more: on a trained SAE (d_sae 16,384, k 32) 32 included all
    true ones. A feature that fp8 misplaces by more goes unnoticed."""
    complete_below: int = 1 << 24
    """Maximum number of pre-activations for complete codes with thresholds, whose sizes do not depend on the data."""
    dense_above: float | None = None
    """Density above which codes use GEMMs; None: the value in `DENSE_ABOVE`."""

    def is_dense(self, nnz: int, n_rows: int, d_sae: int) -> bool:
        """Whether a code is processed by `dense`."""
        limit = DENSE_ABOVE[self.precision] if self.dense_above is None else self.dense_above
        return nnz > limit * n_rows * d_sae

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """Whether threshold codes store all features of each row, with the inactive ones as padding."""
        n = n_rows * d_sae
        return 0 < n <= min(self.complete_below, self.chunk_bytes // 4) and self.is_dense(n, n_rows, d_sae)

    def operand(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Convert a tensor to operand precision, for GEMMs and gathers."""
        return tensor.bfloat16() if self.precision == "bf16" else tensor

    def chunks(self, n_rows: int, d_sae: int, n_bytes: int = 4) -> Iterator[slice]:
        """Chunks of rows whose scores, at `n_bytes` each, fit into `chunk_bytes`."""
        step = max(1, self.chunk_bytes // (n_bytes * d_sae))
        return (slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step))


def matmul(a: Float[Tensor, "n m"], b: Float[Tensor, "m p"]) -> Float32[Tensor, "n p"]:
    """a @ b in fp32; bf16 operands are multiplied in bf16 and accumulated in fp32.

    torch < 2.8 and CPUs have no such product; there operands are converted to fp32 first (same values, slower).
    """
    if a.dtype != torch.bfloat16:
        return torch.mm(a, b)
    if a.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def half_product(a: BFloat16[Tensor, "n m"], b: BFloat16[Tensor, "m p"]) -> BFloat16[Tensor, "n p"]:
    """a @ b accumulated in fp32 and rounded to bf16 (a CPU's bf16 product might also round in between)."""
    return torch.mm(a, b) if a.is_cuda or a.is_meta else torch.mm(a.float(), b.float()).bfloat16()


@dataclass(frozen=True)
class Encoder:
    """The encoder of a call: input rows and feature-major weights, in fp32 and in operand precision."""

    x: Float32[Tensor, "n_rows d_in"]
    W: Float32[Tensor, "d_sae d_in"]
    b: Float32[Tensor, " d_sae"]
    settings: Settings
    x_operand: Float[Tensor, "n_rows d_in"]
    W_operand: Float[Tensor, "d_sae d_in"]
    eight: tuple[Eight, Eight] | None = None
    """Rows and weights in e4m3, if candidates come from an fp8 product."""

    @classmethod
    def in_training(
        cls, x: Float32[Tensor, "n_rows d_in"], b_pre: Float32[Tensor, " d_in"] | None, W: Float32[Tensor, "d_sae d_in"],
        b: Float32[Tensor, " d_sae"], settings: Settings, W_operand: Float[Tensor, "d_sae d_in"],
    ) -> "Encoder":
        """Encoder of rows from which b_pre is still to be subtracted; weights are given in operand precision too."""
        # fp8 products need dimensions that are multiples of 16
        fits = settings.eight and W.shape[0] % 16 == 0 and W.shape[1] % 16 == 0
        rows = operands.prepared(x, b_pre, settings.precision == "bf16", fits)
        eight = None if rows.eight is None else (rows.eight, operands.in_eight(W_operand))
        return cls(rows.x, W, b, settings, rows.operand, W_operand, eight)

    @classmethod
    def of(
        cls, x: Float32[Tensor, "n_rows d_in"], W: Float32[Tensor, "d_sae d_in"], b: Float32[Tensor, " d_sae"],
        settings: Settings,
    ) -> "Encoder":
        """Encoder with operands converted here."""
        return cls(x, W, b, settings, settings.operand(x), settings.operand(W))

    def of_features(self, ids: Int64[Tensor, " n"], mine: Bool[Tensor, " n"] | None = None) -> "Encoder":
        """The encoder restricted to some features, on the same rows.

        Features that are not `mine` get pre-activations of 0, so they are never active.
        """
        W, b = self.W[ids], self.b[ids]
        if mine is not None:
            W, b = W * mine[:, None], b * mine
        return Encoder(self.x, W, b, self.settings, self.x_operand, self.settings.operand(W))

    def in_fp32(self) -> "Encoder":
        """The same encoder with an fp32 product, which is cheaper than re-scoring if there are few features."""
        return Encoder(self.x, self.W, self.b, replace(self.settings, precision="fp32"), self.x, self.W)

    def chunks(self, *, nominate: bool = False) -> Iterator[tuple[slice, Float[Tensor, "n_chunk d_sae"]]]:
        """Chunks of rows with their scores, without bias, in fp32; in bf16 if scores only `nominate` and are not exact."""
        short = nominate and not self.exact
        for rows in self.settings.chunks(*self.shape, 2 if short else 4):
            if short and self.eight is not None:
                x, W = self.eight
                yield rows, x.rows(rows).times(W)
            elif short:
                yield rows, half_product(self.x_operand[rows], self.W_operand.t())
            else:
                yield rows, matmul(self.x_operand[rows], self.W_operand.t())

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, d_sae)."""
        return self.x.shape[0], self.W.shape[0]

    def margin(self, k: int) -> int:
        """Extra candidates per row beyond k."""
        if self.exact:
            return 0
        return self.settings.margin + k // 8 if self.eight is None else max(self.settings.margin_of_eight, k // 2)

    @property
    def exact(self) -> bool:
        """Whether the GEMM's scores are final."""
        return self.settings.precision == "fp32"

    def rescored(
        self, row: Int[Tensor, " nnz"] | int, feature: Int32[Tensor, " nnz"], rows: slice = slice(None)
    ) -> Float32[Tensor, " nnz"]:
        """fp32 pre-activations of entries; `row` is relative to `rows`, or the number of entries per row."""
        return products.entry_dots(row, feature, self.x[rows], self.W, bias=self.b)


def encode(encoder: Encoder, select: Select) -> SparseCode:
    """The selected features of every row, ascending in each row."""
    if select.mode == "topk":
        return _topk(encoder, select)
    if select.mode == "batch_topk":
        return _batch_topk(encoder, select)
    return from_pairs(*_threshold(encoder, select), *encoder.shape)


def everything(encoder: Encoder, threshold: Tensor | float = 0.0, *, absolute: bool) -> SparseCode:
    """All features of every row from an fp32 product, with those not above their threshold as padding."""
    n_rows, d_sae = encoder.shape
    value = torch.addmm(encoder.b, encoder.x, encoder.W.t())
    least = threshold.clamp_min(0) if isinstance(threshold, Tensor) else max(0.0, threshold)
    # NaN compares false, so it stays visible
    value = value.masked_fill_((value.abs() if absolute else value) <= least, 0)
    feature = torch.arange(d_sae, dtype=torch.int32, device=value.device).repeat(n_rows)
    return SparseCode(feature, value.view(-1), n_rows, d_sae, k=d_sae, complete=True)


def _topk(encoder: Encoder, select: Select) -> SparseCode:
    """The k largest of each row, padded if fewer are positive."""
    n_rows, d_sae = encoder.shape
    k = select.k
    feature, value = gpu_select.empty(n_rows, k, encoder.x.device)
    for rows, scores in encoder.chunks(nominate=True):
        out = feature[rows], value[rows]
        if encoder.exact:
            gpu_select.select_topk(scores, encoder.b, k, select.absolute, out)
            continue
        n_listed = min(d_sae, k + encoder.margin(k))
        # scores below 0 are not ranked: with fewer than k positives in a row, some within rounding of 0 may be missed
        listed, rough = gpu_select.select_topk(scores, encoder.b, n_listed, select.absolute)
        gpu_select.select_rescored(listed, rough, encoder.x[rows], encoder.W, encoder.b, k, select.absolute, out)
    return SparseCode(feature.view(-1), value.view(-1), n_rows, d_sae, k=k)


def _is_active(feature: Tensor, score: Tensor, select: Select, threshold: Tensor | None) -> Tensor:
    """Which exact scores are active."""
    strength = score.abs() if select.absolute else score
    active = strength > 0
    if threshold is not None:
        active &= strength > (threshold[feature.long()] if threshold.numel() > 1 else threshold)
    return active | score.isnan()


def _threshold(encoder: Encoder, select: Select) -> Pairs:
    """All entries above the threshold."""
    d_in, d_sae = encoder.x.shape[1], encoder.shape[1]
    threshold = torch.as_tensor(select.threshold, dtype=torch.float32, device=encoder.x.device).reshape(-1).contiguous()
    assert threshold.numel() in (1, d_sae), threshold.shape
    margins = None
    if not encoder.exact:
        # rounding each factor to bf16 errs by 2^-9 on average, so a sum of d_in independent errors by about
        # 2^-9 ‖x‖ ‖w‖ / √d_in; eight times that
        margins = encoder.x.norm(dim=1) * (encoder.W.norm(dim=1).max() * 2**-6 / d_in**0.5)
    found = []
    for rows, scores in encoder.chunks():
        margin = None if margins is None else margins[rows]
        row, feature, score = gpu_select.compact_above(scores, encoder.b, threshold, select.absolute, margin=margin)
        row = row + rows.start
        if not encoder.exact:
            score = encoder.rescored(row, feature)
            active = _is_active(feature, score, select, threshold)
            row, feature, score = row[active], feature[active], score[active]
        found.append((row, feature, score))
    return _concatenated(found, encoder.x.device)


def _concatenated(found: list[Pairs], device: torch.device) -> Pairs:
    """Concatenate pairs of successive chunks."""
    if not found:
        empty = torch.empty(0, device=device)
        return empty.long(), empty.int(), empty
    row, feature, score = (torch.cat(parts) for parts in zip(*found, strict=True))
    return row, feature, score


def _batch_topk(encoder: Encoder, select: Select) -> SparseCode:
    """The k · n_rows largest of the batch, padded if fewer are positive; without a device sync."""
    n_rows, d_sae = encoder.shape
    n, absolute = min(select.k * n_rows, n_rows * d_sae), select.absolute
    n_listed = min((select.k + encoder.margin(select.k)) * n_rows, n_rows * d_sae)
    chunks = [
        batch.largest_scores(scores, encoder.b, min(n_listed, scores.numel()), absolute)
        for _, scores in encoder.chunks(nominate=True)
    ]
    if not chunks:
        empty = torch.empty(0, device=encoder.x.device)
        return SparseCode(empty.int(), empty, 0, d_sae, indptr=torch.zeros(1, dtype=torch.int64, device=empty.device))
    found = batch.joined(chunks)
    if len(chunks) > 1:
        found = batch.largest_entries(found, n_listed, absolute)
    if not encoder.exact:
        value = gpu_select.score_entries(found.indptr, found.feature, encoder.x, encoder.W, encoder.b)
        found = batch.largest_entries(replace(found, value=value if absolute else value.relu()), n, absolute)
    return SparseCode(found.feature, found.value, n_rows, d_sae, indptr=found.indptr)
