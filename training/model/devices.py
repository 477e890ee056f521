"""Which number format is for which device."""

import torch

from sae.errors import SaescopeError
from sae.kernels.cpu.backend import bf16_is_fast

_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
}


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
