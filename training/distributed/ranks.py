"""`sae.ranks.Ranks` implemented with process groups."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.io.snapshot import as_it_lies
from sae.kernels import Backend
from sae.part import Part
from training.distributed.kernels import DistributedKernels, Sum
from training.distributed.wire import Group, Wire


class DistributedRanks:
    """This rank in `world`; features are split over `shards`, rows over `rows`."""

    def __init__(self, wire: Wire, world: Group, shards: Group, rows: Group) -> None:
        self.wire, self.world, self.shards, self.rows = wire, world, shards, rows
        self.n, self.n_shards = world.n, shards.n

    def part(self, d_sae: int) -> Part:
        """The features that this rank holds."""
        return Part(d_sae, self.shards.index, self.shards.n)

    def over_features(self, x: Tensor) -> Tensor:
        """Σ over the ranks that share the features."""
        if self.shards.n == 1:
            return x
        total: Tensor = Sum.apply(x, self.wire, self.shards, "scalars")
        return total

    def over_rows(self, x: Tensor) -> Tensor:
        """Mean over the ranks that share the rows."""
        if self.rows.n == 1:
            return x
        total: Tensor = Sum.apply(x, self.wire, self.rows, "scalars")
        return total / self.rows.n

    def least(self, x: Tensor) -> Tensor:
        """The least of all ranks."""
        return self.wire.min_(x.clone(), self.world, "scalars")

    def most(self, x: Tensor) -> Tensor:
        """The greatest of all ranks."""
        number = x.to(torch.uint8) if x.dtype == torch.bool else x.clone()
        return self.wire.max_(number, self.world, "scalars").to(x.dtype)

    def latest(self, last_fired: Tensor) -> Tensor:
        """The greatest of the ranks that hold the same features."""
        return self.wire.max_(last_fired, self.rows, "dead")

    def averaged(self, values: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """The mean over all ranks of each of these numbers."""
        device = next((v.device for v in values.values() if isinstance(v, Tensor)), None)
        numbers = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values.values()])
        means = self.wire.sum_(numbers, self.world, "scalars") / self.world.n
        return dict(zip(values, means.unbind(), strict=True))

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        """Average gradients over the rows; those of parameters that all ranks hold also over shards, to keep them equal."""
        for grads, group in ((own, self.rows), (common, self.world)):
            for grad in grads:
                if group.n > 1:
                    self.wire.sum_(lying := as_it_lies(grad), group, "gradients")
                    lying.div_(group.n)

    def kernels(self, local: Backend) -> Backend:
        """The distributed kernels."""
        return DistributedKernels(local, self.wire, self.shards, self.rows, self.world)

    @torch.no_grad()
    def broadcast_weights(self, sae: Any) -> None:
        """Overwrite all replicated values with those of the first rank."""
        for name, tensor in sae.state_dict().items():
            group = self.world if sae.feature_axis(name) is None else self.rows
            if group.n > 1:
                lying = as_it_lies(tensor).contiguous()
                self.wire.from_first_(lying, group, "beginning")
                as_it_lies(tensor).copy_(lying)
