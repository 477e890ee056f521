"""An SAE put together from the parts that ranks hold, as it is saved at the end of a training."""

import torch
import torch.distributed as dist
from torch import Tensor

from sae.base import SAE
from sae.io.snapshot import as_it_lies, is_turned
from training.distributed import layout
from training.distributed.ranks import DistributedRanks


@torch.no_grad()
def gathered(sae: SAE, ranks: DistributedRanks) -> SAE | None:
    """All features, in the memory of the first of the ranks that share them; None on the others.

    One tensor at a time crosses the wire, from host to host, so that no device has to hold them all.
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
    """Every rank's, on the first of them."""
    first, piece = ranks.shards.index == 0, piece.contiguous()
    pieces = [torch.empty_like(piece) for _ in range(ranks.shards.n)] if first else None
    dist.gather(piece, pieces, group=ranks.shards.ranks, group_dst=0)
    return pieces
