"""Gather an SAE from its shards, to save it at the end of a run."""

import torch
import torch.distributed as dist
from torch import Tensor

from sae.base import SAE
from sae.io.snapshot import as_it_lies, is_turned
from training.distributed import layout
from training.distributed.ranks import DistributedRanks


@torch.no_grad()
def gathered(sae: SAE, ranks: DistributedRanks) -> SAE | None:
    """The SAE with all features, in host memory of the first shard's rank; None on the others.

    Tensors are sent one at a time, from host to host, so that no device has to hold the whole SAE.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in sae.state_dict().items():
        axis = sae.feature_axis(name)
        here = tensor.detach().cpu()
        if axis is None:
            tensors[name] = here
            continue
        pieces = _pieces(as_it_lies(here), ranks)
        if pieces is not None:
            tensors[name] = layout.joined([p.t() for p in pieces] if is_turned(here) else pieces, axis, sae.config.d_sae)
    if ranks.shards.index:
        return None
    out = type(sae)(sae.config, sae.d_in, sae.d_out, input=sae.input, target=sae.target)
    out.load_state_dict(tensors, assign=True)
    return out


def _pieces(piece: Tensor, ranks: DistributedRanks) -> list[Tensor] | None:
    """The pieces of all ranks, on the first rank of the group."""
    first, piece = ranks.shards.index == 0, piece.contiguous()
    pieces = [torch.empty_like(piece) for _ in range(ranks.shards.n)] if first else None
    dist.gather(piece, pieces, group=ranks.shards.ranks, group_dst=0)
    return pieces
