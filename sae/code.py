"""`SparseCode`: the one type for sparse codes, from the kernels to the dashboard (CSR, or fixed k).

Codes are signed: "active" means non-zero, and nothing here tests for `> 0`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor


@dataclass(frozen=True)
class SparseCode:
    """The active features of `n_rows` rows out of `d_sae`; only `value` carries gradient.

    Two layouts. *CSR* (`indptr` given): row r owns `feature[indptr[r]:indptr[r + 1]]`, ascending, and no value is zero.
    *Fixed k* (`k` given): row r owns `feature[r * k:(r + 1) * k]` in any order, and zeros are padding (a row with fewer
    than k positive pre-activations). `csr()` converts to the first layout.
    """

    feature: Int32[Tensor, " nnz"]
    value: Float[Tensor, " nnz"]
    n_rows: int
    d_sae: int
    indptr: Int64[Tensor, " n_rows_plus_1"] | None = None
    k: int | None = None
    complete: bool = False
    """Fixed k = d_sae with ascending features: `value` is a dense row-major matrix."""

    def __post_init__(self) -> None:
        """Check that there is exactly one layout and that sizes match it."""
        assert (self.indptr is None) != (self.k is None), "a code is either CSR or fixed-k"
        assert not self.complete or self.k == self.d_sae, (self.k, self.d_sae)
        if self.k is not None:
            assert self.feature.numel() == self.n_rows * self.k, (self.feature.shape, self.n_rows, self.k)
        elif self.indptr is not None:
            assert self.indptr.numel() == self.n_rows + 1, (self.indptr.shape, self.n_rows)

    @property
    def active(self) -> Bool[Tensor, " nnz"]:
        """Mask of stored entries that are active, not padding."""
        return self.value != 0

    @property
    def n_active(self) -> Int[Tensor, ""]:
        """Number of active (row, feature) pairs."""
        return self.active.sum()

    def rows(self) -> Int64[Tensor, " nnz"]:
        """The row of each stored entry."""
        ids = torch.arange(self.n_rows, device=self.feature.device)
        if self.k is not None:
            return ids.repeat_interleave(self.k)
        assert self.indptr is not None
        return ids.repeat_interleave(self.indptr.diff(), output_size=self.feature.numel())

    def counts(self) -> Int64[Tensor, " d_sae"]:
        """Number of rows in which each feature is active."""
        if self.complete:
            return self.active.view(self.n_rows, self.d_sae).sum(0)
        counts = torch.zeros(self.d_sae, dtype=torch.int64, device=self.value.device)
        return counts.index_add_(0, self.feature.long(), self.active.long())

    def sums(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " d_sae"]:
        """Sum one value per stored entry by feature: see `sum_by_feature`."""
        if self.complete:
            return values.view(self.n_rows, self.d_sae).sum(0)
        return sum_by_feature(values, self.feature, self.d_sae)

    def last(self, when: int | Int64[Tensor, ""], before: Int64[Tensor, " d_sae"]) -> Int64[Tensor, " d_sae"]:
        """When each feature last fired: max(`before`, `when` if it is active here)."""
        if self.complete:
            return torch.maximum(before, (self.counts() > 0) * when)
        return before.scatter_reduce(0, self.feature.long(), self.active * when, "amax")

    def l0(self) -> Int64[Tensor, " n_rows"]:
        """Active features per row."""
        return torch.zeros(self.n_rows, dtype=torch.int64, device=self.value.device).index_add_(
            0, self.rows(), self.active.long()
        )

    def to_dense(self) -> Float[Tensor, "n_rows d_sae"]:
        """The dense activation matrix; differentiable in `value`."""
        dense = self.value.new_zeros(self.n_rows * self.d_sae)
        flat = self.rows() * self.d_sae + self.feature
        # accumulate: padding may name a feature that is active elsewhere in the row
        return dense.index_put((flat,), self.value, accumulate=True).view(self.n_rows, self.d_sae)

    def csr(self) -> "SparseCode":
        """This code in CSR layout: features ascending in each row, padding dropped."""
        if self.indptr is not None:
            return self
        keep = self.active.nonzero().squeeze(-1)
        rows, feature = self.rows()[keep], self.feature[keep]
        order = torch.argsort(rows * self.d_sae + feature)
        return from_pairs(rows[order], feature[order], self.value[keep][order], self.n_rows, self.d_sae)

    def scaled(self, by_feature: Float[Tensor, " d_sae"]) -> "SparseCode":
        """Multiply each value by its feature's factor."""
        return replace(self, value=self.value * by_feature[self.feature.long()])

    def only(self, features: Bool[Tensor, " d_sae"]) -> "SparseCode":
        """The CSR code restricted to these features, with the same offsets."""
        code = self.csr()
        kept = features.to(code.feature.device)[code.feature.long()]
        fewer = from_pairs(code.rows()[kept], code.feature[kept], code.value[kept], code.n_rows, code.d_sae)
        return replace(code, feature=fewer.feature, value=fewer.value, indptr=fewer.indptr)

    def detach(self) -> "SparseCode":
        """The same code detached from autograd."""
        return replace(self, value=self.value.detach())


@dataclass(frozen=True)
class OffsetCode(SparseCode):
    """A code with a decoder offset per row instead of one bias."""

    offset: Float[Tensor, "n_rows d_out"] | None = None

    @classmethod
    def around(cls, code: SparseCode, offset: Float[Tensor, "n_rows d_out"]) -> "OffsetCode":
        """Attach offsets to a code."""
        return cls(code.feature, code.value, code.n_rows, code.d_sae, code.indptr, code.k, code.complete, offset)


def from_pairs(
    rows: Int64[Tensor, " nnz"],
    feature: Int[Tensor, " nnz"],
    value: Float[Tensor, " nnz"],
    n_rows: int,
    d_sae: int,
) -> SparseCode:
    """Build a CSR code from (row, feature, value) triples sorted by row, then feature."""
    counts = torch.bincount(rows, minlength=n_rows)
    indptr = torch.zeros(n_rows + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(counts, 0, out=indptr[1:])
    return SparseCode(feature.to(torch.int32), value, n_rows, d_sae, indptr=indptr)


def from_dense(acts: Float[Tensor, "n_rows d_sae"]) -> SparseCode:
    """Build a CSR code from the non-zero entries of a dense activation matrix; differentiable in them."""
    rows, feature = acts.detach().nonzero(as_tuple=True)
    return from_pairs(rows, feature, acts[rows, feature], acts.shape[0], acts.shape[1])


def stacked(codes: Sequence[SparseCode]) -> SparseCode:
    """Concatenate codes by rows into one CSR code, with their offsets if all have them."""
    parts = [code.csr() for code in codes]
    assert parts and len({part.d_sae for part in parts}) == 1, "codes over the same features"
    rows = torch.cat([part.indptr.diff() for part in parts if part.indptr is not None])
    indptr = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
    feature, value = (torch.cat([getattr(part, name) for part in parts]) for name in ("feature", "value"))
    code = SparseCode(feature, value, len(rows), parts[0].d_sae, indptr=indptr)
    offsets = [part.offset for part in codes if isinstance(part, OffsetCode) and part.offset is not None]
    return OffsetCode.around(code, torch.cat(offsets)) if len(offsets) == len(codes) else code


class _SumByFeature(torch.autograd.Function):
    """See `sum_by_feature`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, feature: Tensor, d_sae: int) -> Tensor:
        """Sequential on the CPU, by a stable sort elsewhere."""
        ctx.save_for_backward(feature)
        if values.device.type == "cpu":
            return values.new_zeros(d_sae).index_add_(0, feature, values)
        return summed_in_order(values, feature, d_sae)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Each value gets its feature's gradient."""
        return grads[0][ctx.saved_tensors[0]], None, None


def sum_by_feature(
    values: Float[Tensor, " nnz"], feature: Int[Tensor, " nnz"], d_sae: int
) -> Float[Tensor, " d_sae"]:
    """Sum values by feature, deterministically (bitwise) on every device; differentiable in the values.

    torch's scatter-adds are not deterministic: `index_put` on a CPU and `index_add` on CUDA add in thread order.
    """
    return _SumByFeature.apply(values, feature.long(), d_sae)


def summed_in_order(values: Float[Tensor, " nnz"], feature: Int[Tensor, " nnz"], d_sae: int) -> Float[Tensor, " d_sae"]:
    """`sum_by_feature` by a stable sort and segment sums, without atomics or a device sync."""
    by_feature, order = torch.sort(feature, stable=True)
    starts = torch.searchsorted(by_feature, torch.arange(d_sae + 1, device=feature.device))
    return torch.segment_reduce(values.detach()[order], "sum", offsets=starts, initial=0)
