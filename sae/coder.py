"""The encode/decode interface shared by SAEs and the baselines they are compared with."""

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
        """Decoder directions: what one unit of each feature adds, up to its norm."""
        ...

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """Encode raw activations."""
        ...

    def decode(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """Reconstruct raw activations from a code."""
        ...
