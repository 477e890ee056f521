"""Caches of the GPU backend between calls: bf16 copies of weights, and gradient statistics."""

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
    """Autograd version of the weight when it was copied."""


class Copies:
    """bf16 copies of weights in their own layout, each cached as long as its weight lives.

    The optimiser updates them together with the weights. Other changes of a weight are detected by autograd's version
    counter (writes through `.data` go unnoticed, as in autograd), and the copy is refreshed in place.
    """

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}

    def _held(self, weight: Tensor) -> _Copy | None:
        held = self._copies.get(id(weight))
        return held if held is not None and held.weight() is weight and held.half.shape == weight.shape else None

    def of(self, weight: Float32[Tensor, "n m"]) -> BFloat16[Tensor, "n m"]:
        """The up-to-date copy of a parameter."""
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
        """The copy that must be updated with the weight, if there is one; call `written` afterwards."""
        held = self._held(weight)
        return None if held is None else held.half

    def written(self, weight: Tensor) -> None:
        """Record that a weight and its copy were updated."""
        held = self._held(weight)
        if held is not None:
            torch.autograd.graph.increment_version([held.half])
            held.version = weight._version


@dataclass
class KeptStats:
    """Statistics of the gradients of the last backward pass."""

    W_dec: weakref.ref
    grads: tuple[Tensor, Tensor]
    versions: tuple[int, ...]
    stats: Stats

    @classmethod
    def of(cls, grads: CodeGrads, W_dec: Tensor | None) -> "KeptStats | None":
        """Statistics of the current gradients; None if unknown."""
        if grads.stats is None or grads.W_enc is None or grads.W_dec is None or W_dec is None:
            return None
        # store aliases: with a second reference to the tensor itself, autograd would copy it
        held = grads.W_enc.detach(), grads.W_dec.detach()
        return cls(weakref.ref(W_dec), held, tuple(t._version for t in (*held, W_dec)), grads.stats)

    def holds_for(self, enc: Tensor, dec: Tensor, W_dec: Tensor) -> bool:
        """Whether these gradients and the decoder rows are unchanged since."""
        pairs = zip(self.grads, (enc, dec), strict=True)
        same = all(a.data_ptr() == b.data_ptr() and a.numel() == b.numel() for a, b in pairs)
        return same and self.W_dec() is W_dec and self.versions == tuple(t._version for t in (enc, dec, W_dec))
