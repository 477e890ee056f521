"""Choose a dtype for a device."""

import torch

from sae.errors import SaescopeError
from sae.kernels.cpu.backend import bf16_is_fast

_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
}


def fast_dtype(device: torch.device) -> str:
    """`bfloat16` if the device supports it in hardware; else `float32`, since emulated bfloat16 is ten times slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and bf16_is_fast() else "float32"


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype with this name.

    Raises:
        SaescopeError: not a supported model dtype.
    """
    if name not in _DTYPES:
        raise SaescopeError(f"Unknown model dtype {name!r}: use auto or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
