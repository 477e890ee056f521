"""Which device, and which number format on it."""

import torch

from sae.errors import SaescopeError
from sae.kernels.cpu.backend import bf16_is_fast

_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
}


def resolve_device(name: str) -> torch.device:
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
            f"The device {name!r} is not available to torch here: use cpu, cuda, mps or auto."
        ) from None


def fast_dtype(device: torch.device) -> str:
    """`bfloat16` where the device multiplies it in hardware; elsewhere it would be emulated, ten times slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and bf16_is_fast() else "float32"


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        SaescopeError: a model is not run in it.
    """
    if name not in _DTYPES:
        raise SaescopeError(f"The model dtype {name!r} is not known: use auto or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
