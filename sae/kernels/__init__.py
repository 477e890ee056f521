"""Sparse operations for training and inference of all variants: one interface, one backend per device type.

The backend follows from the SAE's device (`backend(device)`) and can be overridden by name; it never depends on which
imports succeed. `reference` (dense torch, up to fp64) defines the results, values and gradients, that the others are
tested against.
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
    """The backend for a device, or the one given by name (or by the environment variable SAESCOPE_KERNELS).

    `precision` is `fp32`, `bf16` (encoder scores in bf16, values re-scored in fp32), `fp8` (GPUs only: candidates from an
    fp8 product) or `auto` (bf16 if the hardware has fast bf16 products). `fused_adam` lets the gpu backend update
    weights without allocating their gradients; other backends ignore it.

    Raises:
        SaescopeError: the name is unknown, or the backend cannot run on this device.
    """
    device = torch.device(device)
    name = os.environ.get("SAESCOPE_KERNELS", "auto") if name == "auto" else name
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "gpu"}.get(device.type, "reference")
    if name not in BACKENDS:
        raise SaescopeError(f"kernels: no backend called {name!r}; choose {', '.join(BACKENDS)} or auto.")
    if name == "cpu":
        if device.type != "cpu":
            raise SaescopeError(f"kernels: the cpu backend cannot run on {device}; use kernels=auto.")
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
