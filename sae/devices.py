"""Which device a name means."""

import torch

from sae.errors import SaescopeError


def resolve_device(name: str | torch.device) -> torch.device:
    """The torch device of a name; `auto` is the best there is.

    Raises:
        SaescopeError: torch cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says "not compiled with CUDA" by assertion
        raise SaescopeError(
            f"The device {str(name)!r} is not available to torch here: use cpu, cuda, mps or auto."
        ) from None
