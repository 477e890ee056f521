"""What the GPU backend keeps from one call for the next: bf16 copies of weights, and statistics of gradients."""

import weakref
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

from sae.kernels.gpu.backward import CodeGrads, Stats


@dataclass
class _Copy:
    weight: weakref.ref
    half: BFloat16[Tensor, "n m"]
    version: int = -1
    """That of the weight that the copy was made of, as autograd counts them."""


class Copies:
    """bf16 copies of weights in their layout, each in memory of its own for as long as the weight lives.

    The optimiser writes them beside the weights that it steps; whoever else changes a weight is found out by autograd's
    counter (writes through `.data` escape it, here as in autograd), and the copy made anew in the same memory.
    """

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}

    def _held(self, weight: Tensor) -> _Copy | None:
        held = self._copies.get(id(weight))
        return held if held is not None and held.weight() is weight and held.half.shape == weight.shape else None

    def of(self, weight: Float32[Tensor, "n m"]) -> BFloat16[Tensor, "n m"]:
        """The copy of a parameter as it is now."""
        held = self._held(weight)
        if held is None:
            self._copies = {key: copy for key, copy in self._copies.items() if copy.weight() is not None}
            half = torch.empty_like(weight, dtype=torch.bfloat16, requires_grad=False)
            held = self._copies[id(weight)] = _Copy(weakref.ref(weight), half)
        if held.version != weight._version:
            held.half.copy_(weight.detach())
            held.version = weight._version
        return held.half

    def to_write(self, weight: Tensor) -> BFloat16[Tensor, "n m"] | None:
        """The copy that a change of the weight has to write, if there is one; `written` is to follow."""
        held = self._held(weight)
        return None if held is None else held.half

    def written(self, weight: Tensor) -> None:
        """The weight has changed, and its copy with it."""
        held = self._held(weight)
        if held is not None:
            torch.autograd.graph.increment_version([held.half])
            held.version = weight._version


@dataclass
class KeptStats:
    """The statistics of the gradients that the last backward pass made."""

    W_dec: weakref.ref
    grads: tuple[Tensor, Tensor]
    versions: tuple[int, ...]
    stats: Stats

    @classmethod
    def of(cls, grads: CodeGrads, W_dec: Tensor | None) -> "KeptStats | None":
        """Of the gradients as they are now; None where nothing is known of them."""
        if grads.stats is None or grads.W_enc is None or grads.W_dec is None or W_dec is None:
            return None
        # aliases: with a second reference to a tensor itself autograd would copy it
        held = grads.W_enc.detach(), grads.W_dec.detach()
        return cls(weakref.ref(W_dec), held, tuple(t._version for t in (*held, W_dec)), grads.stats)

    def holds_for(self, enc: Tensor, dec: Tensor, W_dec: Tensor) -> bool:
        """Neither these gradients nor the decoder's rows have changed since."""
        pairs = zip(self.grads, (enc, dec), strict=True)
        same = all(a.data_ptr() == b.data_ptr() and a.numel() == b.numel() for a, b in pairs)
        return same and self.W_dec() is W_dec and self.versions == tuple(t._version for t in (enc, dec, W_dec))
