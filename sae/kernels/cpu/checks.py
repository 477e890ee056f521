"""Argument checks of the cpu backend, whose loops would otherwise read out of bounds."""

import torch
from torch import Tensor

from sae.code import SparseCode
from sae.errors import SaescopeError

AXES = {
    "x": ("n_rows", "d_in"), "W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",), "b_pre": ("d_in",), "dead": ("d_sae",),
}
"""Axes of each argument; axes with the same name must have the same length."""


def check_shapes(**tensors: Tensor | None) -> None:
    """Raise SaescopeError unless the shapes of the arguments are consistent."""
    lengths: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        axes = AXES[name]
        if tensor.dim() != len(axes):
            raise SaescopeError(f"kernels: {name} must be [{', '.join(axes)}], but has shape {list(tensor.shape)}.")
        for axis, length in zip(axes, tensor.shape, strict=True):
            known, of = lengths.setdefault(axis, (length, name))
            if known != length:
                raise SaescopeError(f"kernels: {axis} is {known} in {of} but {length} in {name}.")


def takes(**tensors: Tensor | None) -> bool:
    """True for fp32 tensors on the CPU, False for fp64 (which the reference backend handles).

    Raises:
        SaescopeError: other devices or dtypes.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.device.type != "cpu":
            raise SaescopeError(f"kernels: {name} is on {tensor.device}, but the cpu backend runs on the CPU; "
                                "move it, or use the backend of its device.")
    dtypes = {tensor.dtype for tensor in given.values()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        found = ", ".join(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in given.items())
        raise SaescopeError(f"kernels: the cpu backend needs float32, got {found}; convert with .float().")
    return dtypes == {torch.float32}


def check_code(code: SparseCode, d_sae: int) -> None:
    """Raise SaescopeError unless feature ids are in range and indptr is ascending: the code may come from a file."""
    feature, indptr = code.feature, code.indptr
    if feature.numel() and not (int(feature.min()) >= 0 and int(feature.max()) < d_sae):
        raise SaescopeError(f"kernels: the code has feature ids {int(feature.min())} to {int(feature.max())}, but the "
                            f"decoder has 0 to {d_sae - 1}; is it the code of another SAE?")
    n = code.value.numel()
    if feature.numel() != n:
        raise SaescopeError(f"kernels: the code has {feature.numel()} feature ids but {n} values.")
    if indptr is not None and (int(indptr[0]) != 0 or int(indptr[-1]) != n or bool((indptr.diff() < 0).any())):
        raise SaescopeError(f"kernels: the code's indptr does not ascend from 0 to its {n} entries.")


def check_prefixes(prefixes: tuple[int, ...] | None, d_sae: int) -> tuple[int, ...]:
    """Check prefix ends: ascending and at most d_sae. Without prefixes, return d_sae alone."""
    ends = tuple(prefixes) if prefixes else (d_sae,)
    if any(a >= b for a, b in zip((0, *ends[:-1]), ends, strict=True)) or ends[-1] > d_sae:
        raise SaescopeError(f"kernels: prefixes must ascend from 1 to at most d_sae = {d_sae}, but are {ends}.")
    return ends
