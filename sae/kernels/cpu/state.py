"""Shared state of the cpu backend: forward passes, gradients, and buffers reused across steps."""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.cpu import adam, runtime
from sae.kernels.cpu import loops as cpu_loops

SCORE_BYTES = 2**27
"""Maximum bytes of scores (or dense activations) held at a time."""


class Half(NamedTuple):
    """Feature-major bf16 copy of an encoder, and its row norms."""

    w16: Tensor
    norms: Tensor


@dataclass
class Pass:
    """A forward pass with what its backward needs. Weights are feature-major and detached."""

    x: Float[Tensor, "n_rows d_in"]
    """The encoded rows, with b_pre subtracted."""
    w_enc: Float[Tensor, "d_sae d_in"]
    w_dec: Float[Tensor, "d_sae d_out"]
    code: SparseCode
    indptr: Int64[Tensor, " n_rows_plus_1"]
    ends: tuple[int, ...]
    """Where each prefix of features ends."""
    dense: bool

    @property
    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr, feature and value as numpy arrays for the loops."""
        return self.indptr.numpy(), self.code.feature.numpy(), self.code.value.detach().numpy()

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The features that each prefix adds to the previous one."""
        yield from zip((0, *self.ends[:-1]), self.ends, strict=True)


class Part(NamedTuple):
    """A pass over some of the features, with the same rows."""

    ids: Int64[Tensor, " n"]
    done: Pass


@dataclass
class Gradients:
    """Results of a backward pass; weight gradients are feature-major."""

    g_enc: Float[Tensor, "d_sae d_in"]
    g_dec: Float[Tensor, "d_sae d_out"]
    g_bias: Float[Tensor, " d_sae"]
    g_pre: Float[Tensor, " d_in"]
    """The gradient of `b_pre`."""
    g_entry: Float[Tensor, " nnz"]
    """The gradient of each entry's pre-activation; 0 for padding."""
    enc2: Float[Tensor, " d_sae"] | None = None
    """‖g_enc‖² of each feature; None if unknown, as for the following."""
    dec2: Float[Tensor, "d_sae 2"] | None = None
    """‖g_dec‖² of each feature, without its part along the decoder row, and with it."""
    radial: Float[Tensor, " d_sae"] | None = None
    """⟨g_dec, W_dec⟩ of each feature."""


def roomy(shape: tuple[int, ...], dtype: type) -> Tensor:
    """An uninitialised tensor allocated by numpy, which requests huge pages; aligned to a cache line."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start:start + n_bytes].view(dtype).reshape(shape))


class Buffers:
    """Memory reused across steps: page faults of new memory cost more than the arithmetic that fills it."""

    def __init__(self) -> None:
        self._spaces: dict[str, Tensor] = {}
        self._spare: dict[tuple[int, ...], list[Tensor]] = {}
        self._stats: dict[int, tuple[Tensor, int, Tensor, int, Tensor, Tensor]] = {}
        self._half: tuple[weakref.ref[Tensor], int, Half] | None = None

    def space(self, name: str, shape: tuple[int, int], half: bool = False) -> Tensor:
        """An uninitialised fp32 (or bf16) matrix in memory reused by each call with this name."""
        n = math.prod(shape)
        held = self._spaces.get(name)
        if held is None or held.numel() < n:
            held = roomy((n,), np.uint16).view(torch.bfloat16) if half else roomy((n,), np.float32)
            self._spaces[name] = held
        return held[:n].view(shape)

    # -- gradients ----------------------------------------------------------------------------------------------------

    def take_spare(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised gradient buffer; reuses one that the optimiser has consumed, if any."""
        spare = self._spare.get(shape)
        return spare.pop() if spare else roomy(shape, np.float32)

    def give_spare(self, buffer: Tensor) -> None:
        """Return a consumed gradient for reuse in the next backward."""
        spare = self._spare.setdefault(tuple(buffer.shape), [])
        if len(spare) < 2:
            spare.append(buffer)

    def forget_stats(self) -> None:
        """Drop row statistics that no optimiser step has used."""
        self._stats.clear()

    def keep_stats(self, grad: Tensor, weights: Tensor, squares: Tensor, radial: Tensor) -> None:
        """Store the row statistics of a gradient; valid while neither it nor the weights change."""
        # store an alias: with a second reference to the tensor itself, autograd would copy it
        alias = grad.detach()
        self._stats[grad.data_ptr()] = (alias, alias._version, weights, weights._version, squares, radial)

    def kept_stats(self, grad: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        """Squares and radial parts of this gradient's rows, if still valid."""
        kept = self._stats.pop(grad.data_ptr(), None)
        if kept is None or kept[0].numel() != grad.numel() or kept[2] is not weights:
            return None
        alias, version, of, of_version, squares, radial = kept
        return (squares, radial) if (alias._version, of._version) == (version, of_version) else None

    # -- the bf16 encoder ---------------------------------------------------------------------------------------------

    def half_space(self, shape: tuple[int, ...]) -> Half:
        """Memory for a bf16 copy; reuses the cached copy's if its shape fits."""
        if self._half is not None and self._half[2].w16.shape == shape:
            return self._half[2]
        return Half(roomy(shape, np.uint16).view(torch.bfloat16), torch.empty(shape[0]))

    def keep_half(self, W_enc: Tensor, half: Half) -> None:
        """Cache the bf16 copy of the current weights."""
        self._half = (weakref.ref(W_enc), W_enc._version, half)

    def half_of(self, w: Float[Tensor, "d_sae d_in"], W_enc: Tensor | None) -> Half:
        """The bf16 copy of feature-major weights.

        The copy of a parameter `W_enc` is cached, and refreshed when autograd's version counter shows that the parameter
        has changed (writes through `.data` go unnoticed, as in autograd).
        """
        if W_enc is not None and self._half is not None:
            ref, version, half = self._half
            if ref() is W_enc and version == W_enc._version:
                return half
        half = Half(torch.empty(w.shape, dtype=torch.bfloat16), torch.empty(w.shape[0]))
        if W_enc is not None:
            half = self.half_space(tuple(w.shape))
            self.keep_half(W_enc, half)
        bits = half.w16.view(torch.uint16).numpy()
        runtime.run(adam.to_half, runtime.even(w.shape[0]), w.numpy(), bits, half.norms.numpy())
        return half


def indptr_of(code: SparseCode) -> Int64[Tensor, " n_rows_plus_1"]:
    """The start of each row's entries, in either layout."""
    if code.indptr is not None:
        return code.indptr
    assert code.k is not None
    return torch.arange(code.n_rows + 1) * code.k


def decode(
    code: SparseCode, w_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], ends: tuple[int, ...]
) -> Float[Tensor, "n_prefixes n_rows d_out"]:
    """Reconstruction from each prefix, by the sparse loop."""
    out = torch.empty(len(ends), code.n_rows, w_dec.shape[1])
    runtime.run(
        cpu_loops.decode_rows, runtime.even(code.n_rows), indptr_of(code).numpy(), code.feature.contiguous().numpy(),
        code.value.detach().contiguous().numpy(), w_dec.numpy(), b_dec.detach().contiguous().numpy(), np.array(ends),
        out.numpy(),
    )
    return out


def sum_rows(g: Float[Tensor, "n_rows d"]) -> Float[Tensor, " d"]:
    """Sum over rows, in an order independent of the number of threads."""
    return ordered_sum(runtime.run(cpu_loops.sum_rows, runtime.even(g.shape[0]), g.contiguous().numpy()))


def ordered_sum(parts: list[np.ndarray]) -> Float[Tensor, " d"]:
    """Sum of partial sums, first to last."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return torch.from_numpy(total)
