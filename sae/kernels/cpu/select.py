"""Encode and select: the encoder product in chunks of rows, and exact selection from its scores."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.kernels.cpu import runtime, select_loops
from sae.kernels.cpu.state import SCORE_BYTES, Buffers, Half, indptr_of
from sae.kernels.interface import Select

MARGIN = 4
"""Initial number of extra candidates, beyond k, nominated by bf16 scores."""
RESCORE_SHARE = 0.03
"""Fraction of candidates above which re-scoring costs more than an fp32 product."""
SAMPLE_ROWS = 64
"""Rows sampled to estimate the density of a thresholded code."""


class Encoder:
    """Scores and selection of a batch. With `half`, scores are bf16 and candidates are re-scored in fp32."""

    def __init__(
        self, buffers: Buffers, x: Float[Tensor, "n_rows d_in"], w: Float[Tensor, "d_sae d_in"],
        bias: Float[Tensor, " d_sae"], half: Half | None,
    ) -> None:
        self.buffers, self.x, self.w, self.bias, self.half = buffers, x, w, bias, half
        self.n_rows, self.d_sae = x.shape[0], w.shape[0]
        self.bad = np.zeros(self.n_rows, np.uint8)

    def code(self, select: Select) -> SparseCode:
        """The selected code.

        Raises:
            SaescopeError: k is out of range, or a pre-activation is not finite.
        """
        if select.mode == "topk":
            if not 0 < select.k <= self.d_sae:
                raise SaescopeError(f"kernels: k = {select.k} must be between 1 and d_sae = {self.d_sae}.")
            code = self.topk(select.k, select.absolute)
        elif select.mode == "batch_topk" and select.k < self.d_sae:
            code = self.batch_topk(select.k * self.n_rows, select.absolute)
        else:
            threshold = select.threshold if select.mode == "threshold" else 0.0
            code = self.above(self.per_feature(threshold, select.absolute), select.absolute)
        if self.bad.any():
            raise SaescopeError(
                f"kernels: {int(self.bad.sum())} of {self.n_rows} rows have pre-activations that are NaN or infinite "
                f"(the first is row {int(self.bad.argmax())}); check the input for such values, or lower the learning "
                "rate if training has diverged."
            )
        return code

    def per_feature(self, threshold: Tensor | float, absolute: bool) -> np.ndarray:
        """The threshold of each feature; clamped to ≥ 0 for ReLU values."""
        full = torch.as_tensor(threshold, dtype=torch.float32).detach().expand(self.d_sae)
        return (full if absolute else full.clamp_min(0)).contiguous().numpy().copy()

    # -- scores -------------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[tuple[int, tuple]]:
        """Yield (first row, score arguments of the loops) per chunk; the next chunk overwrites the scores."""
        half = self.half is not None
        n_chunk = max(1, SCORE_BYTES // ((2 if half else 4) * self.d_sae))
        x, w = self.x, self.w
        if self.half is not None:
            x, w = x.to(torch.bfloat16), self.half.w16
        nothing16, nothing32 = np.empty((0, 0), np.uint16), np.empty((0, 0), np.float32)
        for first in range(0, self.n_rows, n_chunk):
            rows = x[first:first + n_chunk]
            name = "scores16" if half else "scores32"
            scores = self.buffers.space(name, (rows.shape[0], self.d_sae), half)
            with runtime.timed("encoder product"), runtime.columns(self.d_sae):
                torch.mm(rows, w.t(), out=scores)
            if half:
                yield first, (True, scores.view(torch.uint16).numpy(), nothing32)
            else:
                yield first, (False, nothing16, scores.numpy())

    def n_groups(self, n_wanted: int) -> int:
        """Number of groups whose maxima bound the `n_wanted`-th largest score; balances scanning maxima and groups.

        Few enough to stay in the L1 cache, and a multiple of 64 so that loops over them need no remainder.
        """
        n = -(-int((self.d_sae * n_wanted) ** 0.5) // 64) * 64
        return self.d_sae if 2 * n > self.d_sae else n

    # -- the three modes ----------------------------------------------------------------------------------------------

    def topk(self, k: int, absolute: bool) -> SparseCode:
        """The k largest of each row, ascending by feature, then padding."""
        n_candidates = min(self.d_sae, k + MARGIN if self.half is not None else k)
        feature = torch.empty(self.n_rows * k, dtype=torch.int32)
        value = torch.empty(self.n_rows * k)
        rows = feature.view(-1, k).numpy(), value.view(-1, k).numpy()
        x, w, bias = self.x.numpy(), self.w.numpy(), self.bias.numpy()
        for first, scores in self.chunks():
            n = scores[1 if scores[0] else 2].shape[0]
            runtime.run(
                select_loops.select_topk, runtime.even(n), *scores, x, w, bias, k, n_candidates,
                self.n_groups(n_candidates), absolute, first, *rows, self.bad,
            )
        return SparseCode(feature, value, self.n_rows, self.d_sae, k=k)

    def above(self, threshold: np.ndarray, absolute: bool) -> SparseCode:
        """Everything above the threshold."""
        if self.half is not None and self.share_above(threshold, absolute) > RESCORE_SHARE:
            # too many candidates: re-scoring them would cost more than an fp32 product
            self.half = None
        return self.collect(threshold, absolute, None)

    def share_above(self, threshold: np.ndarray, absolute: bool) -> float:
        """Estimated fraction of features above the threshold, from bf16 scores of rows spread over the batch."""
        assert self.half is not None
        stride = max(1, self.n_rows // SAMPLE_ROWS)
        with runtime.columns(self.d_sae):
            pre = torch.mm(self.x[::stride].to(torch.bfloat16), self.half.w16.t()).float() + self.bias
        pre = pre.abs() if absolute else pre
        return float((pre > torch.from_numpy(threshold)).float().mean()) if pre.numel() else 0.0

    def batch_topk(self, n_kept: int, absolute: bool) -> SparseCode:
        """The n_kept largest of the batch; ties go to the lowest row, then feature."""
        code = self.collect(np.zeros(self.d_sae, np.float32), absolute, n_kept)
        if code.feature.numel() <= n_kept:
            return code
        size = code.value.abs().numpy()
        least = np.partition(size, size.size - n_kept)[size.size - n_kept]
        keep = size > least
        ties = np.flatnonzero(size == least)
        keep[ties[: n_kept - int(keep.sum())]] = True
        before = torch.from_numpy(np.concatenate([[0], np.cumsum(keep)]))
        indptr, kept = before[indptr_of(code)], torch.from_numpy(keep)
        return SparseCode(code.feature[kept], code.value[kept], self.n_rows, self.d_sae, indptr=indptr)

    def collect(self, threshold: np.ndarray, absolute: bool, n_kept: int | None) -> SparseCode:
        """Entries above the threshold; with `n_kept`, at least the n_kept largest of these.

        bf16 scores are first assumed accurate to a fraction of the worst-case error bound. If a candidate's error exceeds
        two thirds of that, the fraction is doubled and collection repeated.
        """
        trust = np.float32(0.25)
        while True:
            parts, worst = self.collect_once(threshold, absolute, n_kept, trust)
            if self.half is None or trust >= 1 or worst * 1.5 <= trust:
                break
            trust = min(np.float32(1), 2 * trust)
        counts = np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.int64)
        indptr = torch.zeros(self.n_rows + 1, dtype=torch.int64)
        torch.cumsum(torch.from_numpy(counts), 0, out=indptr[1:])
        feature = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int32)
        value = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.float32)
        return SparseCode(torch.from_numpy(feature), torch.from_numpy(value), self.n_rows, self.d_sae, indptr=indptr)

    def collect_once(
        self, threshold: np.ndarray, absolute: bool, n_kept: int | None, trust: np.float32
    ) -> tuple[list, float]:
        """(features, values, counts, worst error) per range of rows, and the overall worst error."""
        x_norm, parts = self.x.norm(dim=1).numpy(), []
        w_norm = np.zeros(self.d_sae, np.float32) if self.half is None else self.half.norms.numpy()
        histogram = np.zeros(2**15, np.int64)
        fixed = (self.x.numpy(), x_norm, self.w.numpy(), w_norm, self.bias.numpy())
        for first, scores in self.chunks():
            n = scores[1 if scores[0] else 2].shape[0]
            low, slope = threshold, trust
            if n_kept is not None:
                low = np.full(self.d_sae, self.bound(first, n, scores, absolute, n_kept, histogram))
                slope = 2 * trust  # the bound is itself a score, so the n_kept-th value may be lower
            parts += runtime.run(
                select_loops.select_above, runtime.even(n), *scores, *fixed, low, threshold, np.float32(slope),
                self.n_groups(64), absolute, first, self.bad,
            )
        return parts, max((float(part[3]) for part in parts), default=0.0)

    def bound(
        self, first: int, n: int, scores: tuple, absolute: bool, n_kept: int, histogram: np.ndarray
    ) -> np.float32:
        """A lower bound on the batch's n_kept largest scores, from the rows seen so far."""
        n_groups = min(self.d_sae, max(1024, -(-4 * n_kept // max(n, 1) // 64) * 64))
        fixed = (self.bias.numpy(), n_groups, absolute, first, self.bad)
        for part in runtime.run(select_loops.peak_histogram, runtime.even(n, 8), *scores, *fixed):
            histogram += part
        from_top = np.cumsum(histogram[::-1])
        if from_top[-1] < n_kept:
            return np.float32(0)
        edge = np.array([histogram.size - 1 - int(np.searchsorted(from_top, n_kept))], np.uint32) << 16
        return np.nextafter(edge.view(np.float32)[0], np.float32(-1))
