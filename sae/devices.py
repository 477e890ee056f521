"""Resolve device names."""

import torch

from sae.errors import SaescopeError


def resolve_device(name: str | torch.device) -> torch.device:
    """The torch device of a name; `auto` picks CUDA, else MPS, else the CPU.

    Raises:
        SaescopeError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says "not compiled with CUDA" by assertion
        raise SaescopeError(
            f"The device {str(name)!r} is not available to torch on this machine: use cpu, cuda, mps or auto."
        ) from None
