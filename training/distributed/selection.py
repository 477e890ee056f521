"""Distributed TopK: which entries of each rank's code are among the largest over all ranks, per row or per batch.

Exact, up to the order of ties. Per row, each rank has selected its own k largest, so none of the global k largest can be
missing. Per batch, the k · n_rows-th largest value is found by radix select: positive fp32 numbers are ordered like their
bits, so three rounds of counting determine its 31 bits, 11 at a time, for any k; fp64 takes six rounds.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.code import SparseCode, from_pairs
from training.distributed.wire import Group, Wire

BITS = (11, 10, 10)
"""Bits of a positive fp32 number determined by each round of counting, from the top, without the sign."""
DOUBLE_BITS = (11, 11, 11, 10, 10, 10)
"""The same for a positive fp64 number."""


def of_rows(
    wire: Wire, shards: Group, code: SparseCode, k: int, width: int, what: str
) -> Bool[Tensor, " nnz"]:
    """Mask of the entries of a fixed-k code that are among the k largest of their row over all features.

    Args:
        wire: does and counts communication.
        shards: the ranks with the other features of the same rows.
        code: this rank's largest entries per row.
        k: entries to keep per row.
        width: number of entries per row that every rank sends; no rank has more.
        what: purpose of the communication, for counting.
    """
    size = code.value.detach().abs().view(code.n_rows, code.k or 0)
    mine = torch.nn.functional.pad(size, (0, width - size.shape[1]))
    everyone = wire.gathered(mine, shards, what).permute(1, 0, 2).reshape(code.n_rows, -1)
    chosen = torch.zeros_like(everyone, dtype=torch.bool)
    chosen.scatter_(1, everyone.topk(min(k, everyone.shape[1]), dim=1).indices, True)
    first = shards.index * width
    return chosen[:, first : first + size.shape[1]].reshape(-1)


def of_batch(wire: Wire, world: Group, code: SparseCode, n_kept: int, what: str) -> Bool[Tensor, " nnz"]:
    """Mask of the entries of a code that are among the n_kept largest of all rows and features.

    `code` holds this rank's n_kept largest, or all that are not zero.
    """
    size = code.value.detach().abs()
    double = size.dtype == torch.float64
    bits, rounds = (size.view(torch.int64), DOUBLE_BITS) if double else (size.float().view(torch.int32).long(), BITS)
    known, left = torch.zeros((), dtype=torch.int64, device=bits.device), n_kept
    inside, below = size > 0, sum(rounds)
    for n_bits in rounds:
        below -= n_bits
        # counted among the numbers that agree in the bits settled so far
        digit = (bits >> below) & ((1 << n_bits) - 1)
        counts = torch.bincount(digit[inside], minlength=1 << n_bits)
        from_top = wire.sum_(counts, world, what).flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, left))
        if place == len(from_top):  # fewer than n_kept are not zero
            return size > 0
        left -= int(from_top[place - 1]) if place else 0
        best = (1 << n_bits) - 1 - place
        known = known + (best << below)
        inside = inside & (digit == best)
    # of those that equal the last one, as many as are left go to the first ranks
    n_equal = wire.gathered(inside.sum()[None], world, what).view(-1)
    mine = max(0, left - int(n_equal[: world.index].sum()))
    return (bits > known) | (inside & (inside.cumsum(0) <= mine))


def kept(code: SparseCode, chosen: Bool[Tensor, " nnz"], *, compact: bool) -> SparseCode:
    """The chosen entries of a code; the others become padding, or go if it is to be compact (in CSR layout)."""
    if not compact:
        return replace(code, value=code.value * chosen)
    if code.indptr is None:
        return replace(code, value=code.value * chosen).csr()
    where = chosen.nonzero().squeeze(-1)
    return from_pairs(code.rows()[where], code.feature[where], code.value[where], code.n_rows, code.d_sae)
