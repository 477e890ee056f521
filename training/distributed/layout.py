"""The layout of per-feature tensors over ranks: arrays [n_rounds, round, ...] sharded along the second axis (`sae.part`).

This is a standard DTensor layout, so torch.distributed.checkpoint can write each rank's piece and reshard for another
number of ranks.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sae.base import SAE
from sae.io.snapshot import as_it_lies, is_turned
from sae.part import Part, round_of


def feature_axis(sae: SAE, name: str) -> int | None:
    """The feature axis of a tensor in a trainer's state (`training.trainer.Trainer.tensors`)."""
    if name == "last_fired":
        return 0
    kind, _, rest = name.partition(".")
    return sae.feature_axis(rest if kind == "sae" else rest.rpartition(".")[0])


def in_rounds(tensor: Tensor, axis: int, part: Part) -> Tensor:
    """A rank's piece as [n_rounds, per_round, ...]; a view."""
    lying = tensor.t() if axis else tensor
    return lying.detach().view(-1, part.per_round, *lying.shape[1:])


def spread(tensor: Tensor, axis: int, part: Part, mesh: DeviceMesh) -> DTensor:
    """A DTensor over all features from this rank's piece, without copying, on a mesh [rows, shards]."""
    piece = in_rounds(tensor, axis, part)
    shape = torch.Size((piece.shape[0], round_of(part.d_sae), *piece.shape[2:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        piece, mesh, [Replicate(), Shard(1)], run_check=False, shape=shape, stride=stride
    )


def cut(tensor: Tensor, axis: int, part: Part) -> Tensor:
    """The piece that a rank holds of a tensor over all features."""
    return tensor if part.n == 1 else tensor.index_select(axis, part.features())


def joined(pieces: list[Tensor], axis: int, d_sae: int) -> Tensor:
    """The tensor over all features, from every rank's piece."""
    parts = [Part(d_sae, i, len(pieces)) for i in range(len(pieces))]
    rounds = [in_rounds(piece, axis, part) for piece, part in zip(pieces, parts, strict=True)]
    whole = torch.cat(rounds, dim=1).flatten(0, 1)
    return whole.t() if axis else whole


def empty_like(tensor: Tensor) -> Tensor:
    """Host memory with the same layout as the tensor."""
    out = torch.empty(as_it_lies(tensor).shape, dtype=tensor.dtype)
    return out.t() if is_turned(tensor) else out
