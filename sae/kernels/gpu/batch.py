"""The n largest scores of a batch on the GPU (BatchTopK): exact, without a device sync, with static sizes.

The n-th largest key is found by radix select: a histogram of the upper 15 bits, then one of the lower 16 bits among keys
at the cut. Only groups of features whose maximum is among the n largest maxima are scanned, because the n largest scores
are in them. Ties go to the lowest row, then feature. Scores come in chunks of rows: each chunk gives its n largest, and
the overall n largest are among these.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from sae.kernels.gpu import batch_kernels as kernels
from sae.kernels.gpu.launch import launch, power_of_2
from sae.kernels.gpu.select import group_maxima, group_size

COPIES = 16
"""Copies of the upper histogram, to reduce contention of atomics."""


@dataclass(frozen=True)
class Entries:
    """Entries sorted by row and feature; inactive ones have value 0."""

    feature: Int32[Tensor, " n"]
    value: Float32[Tensor, " n"]
    indptr: Int64[Tensor, " n_rows_plus_1"]

    @property
    def n_rows(self) -> int:
        """Number of rows, including empty ones."""
        return self.indptr.numel() - 1


@dataclass(frozen=True)
class _Candidates:
    """Candidates as kernel arguments: scores in listed groups, or a list of entries (group = 0)."""

    bound: Tensor
    listed: Tensor
    score: Tensor
    bias: Tensor
    least: Tensor
    """A lower bound on the keys of the n largest."""
    n_rows: int
    d_sae: int
    n_groups: int
    group: int
    absolute: bool

    def tensors(self) -> tuple[Tensor, ...]:
        """Tensor arguments."""
        return self.bound, self.listed, self.score, self.bias

    def constants(self) -> dict[str, int]:
        """Compile-time constants of the kernels that read candidates."""
        return {"GROUP": self.group, "BLOCK": 1024 if self.group else 128, "ABSOLUTE": self.absolute}

    def largest(self, n: int) -> Entries:
        """The n largest; there must be at least n candidates."""
        device, sizes = self.score.device, (self.d_sae, self.n_groups)
        out = Entries(
            torch.empty(n, dtype=torch.int32, device=device), torch.empty(n, device=device),
            torch.zeros(self.n_rows + 1, dtype=torch.int64, device=device),
        )
        if n == 0:
            return out
        # histograms of upper and lower digits, and the cut
        counts = torch.zeros((COPIES << 15) + (1 << 16) + 2, dtype=torch.int32, device=device)
        upper, lower, cut = counts.split([COPIES << 15, 1 << 16, 2])
        for level, (histogram, n_copies) in enumerate(((upper, COPIES), (lower, 1))):
            launch(
                kernels.histogram_kernel, (self.n_rows,), *self.tensors(), self.least, cut, histogram, *sizes, LEVEL=level,
                N_COPIES=n_copies, **self.constants(),
            )
            total = histogram if n_copies == 1 else histogram.view(n_copies, -1).sum(0, dtype=torch.int32)
            launch(
                kernels.cut_kernel, (1,), total, cut, n, LEVEL=level, N_COARSE=256, N_FINE=total.numel() // 256,
                num_warps=32,
            )
        found = torch.empty(2, self.n_rows, dtype=torch.int32, device=device)
        launch(kernels.count_selected_kernel, (self.n_rows,), *self.tensors(), cut, found, self.n_rows, *sizes,
               **self.constants())
        ends = found.cumsum(1, dtype=torch.int64)
        launch(
            kernels.store_selected_kernel, (self.n_rows,), *self.tensors(), cut, ends, out.feature, out.value, out.indptr,
            self.n_rows, *sizes, **self.constants(),
        )
        return out


def largest_scores(
    scores: Float[Tensor, "n_rows d_sae"], bias: Float32[Tensor, " d_sae"], n: int, absolute: bool
) -> Entries:
    """The n largest of max(score + bias, 0) (or of |score + bias|, with sign)."""
    n_rows, d_sae = scores.shape
    group = group_size(d_sae, max(1, n // max(1, n_rows)))
    best = group_maxima(scores, bias, group, absolute)
    n_groups = best.shape[1]
    by_row = torch.empty(n_rows, 256, dtype=torch.int32, device=scores.device)
    block = min(2048, max(16, power_of_2(n_groups)))
    launch(kernels.coarse_histogram_kernel, (n_rows,), best, by_row, n_groups, BLOCK=block)
    coarse = by_row.sum(0, dtype=torch.int32)
    listed = torch.empty(n_rows, n_groups, dtype=torch.int32, device=scores.device)
    count = torch.empty(n_rows, dtype=torch.int32, device=scores.device)
    least = torch.empty(1, dtype=torch.int32, device=scores.device)
    launch(kernels.list_groups_kernel, (n_rows,), best, coarse, listed, count, least, n_groups, n, BLOCK=block)
    return _Candidates(count, listed, scores, bias, least, n_rows, d_sae, n_groups, group, absolute).largest(n)


def largest_entries(entries: Entries, n: int, absolute: bool) -> Entries:
    """The n largest entries; all of them if there are at most n."""
    if entries.feature.numel() <= n:
        return entries
    e = entries
    least = torch.zeros(1, dtype=torch.int32, device=e.value.device)
    return _Candidates(e.indptr, e.feature, e.value, e.value, least, e.n_rows, 0, 0, 0, absolute).largest(n)


def joined(chunks: list[Entries]) -> Entries:
    """Concatenate the entries of successive chunks of rows."""
    if len(chunks) == 1:
        return chunks[0]
    ends, n = [chunks[0].indptr[:1]], 0
    for chunk in chunks:
        ends.append(chunk.indptr[1:] + n)
        n += chunk.feature.numel()
    return Entries(
        torch.cat([c.feature for c in chunks]), torch.cat([c.value for c in chunks]), torch.cat(ends)
    )
