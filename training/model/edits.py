"""Edits of features during a forward pass: set (0 ablates, a number clamps), scale, add, or patch.

Edits act on sparse codes and never store zeros: the entries of the edited code are exactly the active features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sae.code import OffsetCode, SparseCode, from_pairs
from training.site import Site

Where = Sequence[int] | Bool[Tensor, "n_seqs n_ctx"] | None


@dataclass(frozen=True)
class Edit:
    """One edit of some features at one site.

        set     v' = value     0 ablates, a number clamps, a code patches in the values of another run
        scale   v' = value · v
        add     v' = v + value

    Attributes:
        site: the site.
        features: indices of the features to edit.
        value: a number or a scalar tensor (gradients flow to it), or for `set` a code with the same rows.
        mode: as above.
        positions: positions in every sequence, or a mask `[n_seqs, n_ctx]`; None is all. Masked rows are never edited.
    """

    site: Site
    features: Sequence[int]
    value: float | Tensor | SparseCode = 0.0
    mode: Literal["set", "add", "scale"] = "set"
    positions: Where = None

    def chosen(self, keep: Bool[Tensor, "n_seqs n_ctx"]) -> Bool[Tensor, " n_kept"]:
        """Mask of the kept rows that are edited."""
        if self.positions is None:
            return torch.ones(int(keep.sum()), dtype=torch.bool, device=keep.device)
        if isinstance(self.positions, Tensor):
            return self.positions.to(keep.device)[keep]
        columns = torch.zeros(keep.shape[1], dtype=torch.bool, device=keep.device)
        columns[list(self.positions)] = True
        return columns.expand_as(keep)[keep]

    def apply(self, code: SparseCode, chosen: Bool[Tensor, " n_rows"]) -> SparseCode:
        """Edit these features in the chosen rows of a code; differentiable in the code's values and in `value`."""
        rows, value = code.rows(), code.value
        if self.mode == "scale":
            assert not isinstance(self.value, SparseCode)
            mine = self._mine(code, chosen)
            return with_pairs(code, rows, code.feature, torch.where(mine, value * self.value, value))
        keep = ~self._mine(code, chosen) if self.mode == "set" else torch.ones_like(value, dtype=torch.bool)
        put = self._put(code, chosen)
        parts = [(rows[keep], code.feature[keep], value[keep]), (put[0], put[1], put[2].to(value.dtype))]
        return with_pairs(code, *(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _mine(self, code: SparseCode, chosen: Bool[Tensor, " n_rows"]) -> Bool[Tensor, " nnz"]:
        features = torch.as_tensor(self.features, dtype=code.feature.dtype, device=code.feature.device)
        return chosen[code.rows()] & torch.isin(code.feature, features)

    def _put(self, code: SparseCode, chosen: Bool[Tensor, " n_rows"]) -> tuple[Int64[Tensor, " n"], Tensor, Tensor]:
        """The new entries (row, feature, value)."""
        if isinstance(self.value, SparseCode):
            other = self.value.csr()
            mine = self._mine(other, chosen)
            return other.rows()[mine], other.feature[mine], other.value[mine]
        value = torch.as_tensor(self.value, dtype=code.value.dtype, device=code.value.device)
        features = torch.as_tensor(self.features, dtype=code.feature.dtype, device=code.feature.device)
        rows = chosen.nonzero().squeeze(-1)
        grid = rows.repeat_interleave(len(features)), features.repeat(len(rows))
        return *grid, value.expand(len(grid[0]))


def with_pairs(code: SparseCode, rows: Tensor, feature: Tensor, value: Tensor) -> SparseCode:
    """A code with the same rows and offsets, but these entries; duplicates are summed, zeros dropped."""
    keys, which = (rows * code.d_sae + feature).unique(return_inverse=True)
    total = value.new_zeros(len(keys)).index_add(0, which, value)
    stored = total.detach() != 0
    keys, total = keys[stored], total[stored]
    new = from_pairs(keys // code.d_sae, keys % code.d_sae, total, code.n_rows, code.d_sae)
    return OffsetCode.around(new, code.offset) if isinstance(code, OffsetCode) and code.offset is not None else new


def difference(new: SparseCode, old: SparseCode) -> SparseCode:
    """new − old, elementwise."""
    return with_pairs(
        replace(new, offset=None) if isinstance(new, OffsetCode) else new, torch.cat([new.rows(), old.rows()]),
        torch.cat([new.feature, old.feature]), torch.cat([new.value, -old.value]),
    )


def empty(n_rows: int, d_sae: int, like: Tensor) -> SparseCode:
    """A code without active features, on the device and in the dtype of `like`."""
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    return from_pairs(none, none, like.new_zeros(0), n_rows, d_sae)
