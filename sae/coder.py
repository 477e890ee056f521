"""What turns rows into sparse codes and back: every SAE, and whatever an SAE is measured against."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sae.code import SparseCode


@runtime_checkable
class Coder(Protocol):
    """A dictionary of `d_sae` features in the model's own units; an `SAE` is one."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        ...

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """What one unit of each feature adds, up to its length."""
        ...

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """The features of raw activations."""
        ...

    def decode(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """The raw reconstruction of a code."""
        ...
