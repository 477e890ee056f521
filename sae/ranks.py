"""What of a training crosses from one process to others. A process that trains alone has `ALONE`, which does nothing.

Ranks may share the features of an SAE (each holds a part of them, and sees the same rows) and the rows of a batch (each
sees some of them, and holds the same features); with both, they form a grid. `training.distributed` has the other
implementation.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from sae.kernels import Backend
from sae.part import Part


@runtime_checkable
class Ranks(Protocol):
    """The other ranks of a training. All of them call the same methods in the same order."""

    n: int
    """Ranks in all."""
    n_shards: int
    """Ranks that share the features."""

    def part(self, d_sae: int) -> Part:
        """The features that this rank holds."""
        ...

    def over_features(self, x: Tensor) -> Tensor:
        """Σ over the ranks that share the features. The gradient passes on as it is: each has that of its own features."""
        ...

    def over_rows(self, x: Tensor) -> Tensor:
        """Mean over the ranks that share the rows. The gradient passes on as it is, for gradients are averaged later."""
        ...

    def least(self, x: Tensor) -> Tensor:
        """The least of all ranks, entry by entry."""
        ...

    def most(self, x: Tensor) -> Tensor:
        """The greatest of all ranks, entry by entry."""
        ...

    def latest(self, last_fired: Tensor) -> Tensor:
        """The greatest of the ranks that hold the same features, feature by feature."""
        ...

    def averaged(self, values: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """The mean over all ranks of each of these numbers."""
        ...

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        """Make gradients those of the whole batch, in place.

        Args:
            own: of parameters that belong to single features.
            common: of the others, which all ranks hold.
        """
        ...

    def kernels(self, local: Backend) -> Backend:
        """The operations on a part of the features and rows, whose results are those of all."""
        ...


class Alone:
    """One process, which holds all features and sees all rows."""

    n = 1
    n_shards = 1

    def part(self, d_sae: int) -> Part:
        """All of them."""
        return Part(d_sae)

    def over_features(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def over_rows(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def least(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def most(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def latest(self, last_fired: Tensor) -> Tensor:
        """As they are."""
        return last_fired

    def averaged(self, values: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """As they are."""
        return values

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        """They are whole."""

    def kernels(self, local: Backend) -> Backend:
        """As they are."""
        return local


ALONE = Alone()
