"""The sparse operations every variant trains and infers through: one interface, one backend per kind of device.

A backend is chosen by the device of the SAE (`backend(device)`), can be overridden by name, and is never chosen by
whether an import happens to succeed. `reference` (dense torch, fp64-capable) is the definition the others are tested
against, values and gradients.
"""

import os

import torch

from sae.errors import SaescopeError
from sae.kernels.interface import Autoencoded, Backend, ParamState, Revival, Select

__all__ = ["BACKENDS", "Autoencoded", "Backend", "ParamState", "Revival", "Select", "backend"]

BACKENDS = ("reference", "cpu", "gpu")


def backend(
    device: torch.device | str, name: str = "auto", precision: str = "auto", *, fused_adam: bool = False
) -> Backend:
    """The backend for a device, or the one asked for by name (also by the variable SAESCOPE_KERNELS).

    `precision` is `fp32`, `bf16` (encoder scores in bf16, values re-scored in fp32), `fp8` (on GPUs: candidates from a
    product in 8 bits) or `auto` (bf16 where the hardware multiplies it faster). `fused_adam` lets the gpu backend step
    weights without gradients of their size; the others take no notice of it.

    Raises:
        SaescopeError: the name is unknown, or the backend cannot run on this device.
    """
    device = torch.device(device)
    name = os.environ.get("SAESCOPE_KERNELS", "auto") if name == "auto" else name
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "gpu"}.get(device.type, "reference")
    if name not in BACKENDS:
        raise SaescopeError(f"kernels: no backend called {name!r}; there are {', '.join(BACKENDS)} and auto.")
    if name == "cpu":
        if device.type != "cpu":
            raise SaescopeError(f"kernels: the cpu backend cannot run on {device}; take kernels=auto.")
        from sae.kernels.cpu.backend import Cpu

        return Cpu(precision)
    if name == "gpu":
        from sae.kernels.gpu.backend import Gpu, interpreted

        if device.type != "cuda" and not interpreted():
            raise SaescopeError(
                f"kernels: the gpu backend runs on CUDA devices, not on {device}; choose kernels=cpu or kernels=reference."
            )
        return Gpu(precision, fused_adam=fused_adam)
    from sae.kernels.reference import Reference

    return Reference()
