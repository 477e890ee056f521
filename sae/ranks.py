"""Communication between the ranks of a training run. Single-process training uses `ALONE`, which does nothing.

Ranks may shard the features of an SAE (each holds some features and sees the same rows) or the rows of a batch (each sees
some rows and holds the same features); with both, they form a grid. The other implementation is `training.distributed`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from sae.kernels import Backend
from sae.part import Part


@runtime_checkable
class Ranks(Protocol):
    """Collectives between ranks. All ranks call the same methods in the same order."""

    n: int
    """Number of ranks."""
    n_shards: int
    """Number of feature shards."""

    def part(self, d_sae: int) -> Part:
        """The features that this rank holds."""
        ...

    def over_features(self, x: Tensor) -> Tensor:
        """Sum over the feature shards. The gradient passes through: each rank has that of its own features."""
        ...

    def over_rows(self, x: Tensor) -> Tensor:
        """Mean over the row shards. The gradient passes through; gradients are averaged later."""
        ...

    def least(self, x: Tensor) -> Tensor:
        """Elementwise minimum over all ranks."""
        ...

    def most(self, x: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        ...

    def latest(self, last_fired: Tensor) -> Tensor:
        """Maximum per feature over the ranks that hold the same features."""
        ...

    def averaged(self, values: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """Mean of each value over all ranks."""
        ...

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        """Reduce gradients over the whole batch, in place.

        Args:
            own: gradients of per-feature parameters, which are sharded.
            common: gradients of the other parameters, which all ranks hold.
        """
        ...

    def kernels(self, local: Backend) -> Backend:
        """Wrap kernels that run on one shard so that they return the results for all features and rows."""
        ...


class Alone:
    """A single process that holds all features and sees all rows."""

    n = 1
    n_shards = 1

    def part(self, d_sae: int) -> Part:
        """All features."""
        return Part(d_sae)

    def over_features(self, x: Tensor) -> Tensor:
        """Unchanged."""
        return x

    def over_rows(self, x: Tensor) -> Tensor:
        """Unchanged."""
        return x

    def least(self, x: Tensor) -> Tensor:
        """Unchanged."""
        return x

    def most(self, x: Tensor) -> Tensor:
        """Unchanged."""
        return x

    def latest(self, last_fired: Tensor) -> Tensor:
        """Unchanged."""
        return last_fired

    def averaged(self, values: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """Unchanged."""
        return values

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        """Nothing to reduce."""

    def kernels(self, local: Backend) -> Backend:
        """Unchanged."""
        return local


ALONE = Alone()
