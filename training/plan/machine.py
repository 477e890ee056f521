"""Hardware assumptions of a plan: vendors' peak figures, and the utilisation that was measured."""

from typing import NamedTuple

from sae.errors import SaescopeError


class GPU(NamedTuple):
    """Peak performance of one device."""

    name: str
    flops: float
    """Dense bf16 FLOP/s."""
    memory_rate: float
    """Memory bandwidth, bytes per second."""
    memory: float
    """Memory, bytes."""


GPUS = {
    gpu.name: gpu for gpu in (
        GPU("a100", 312e12, 2.04e12, 80e9), GPU("h100", 989e12, 3.35e12, 80e9), GPU("h200", 989e12, 4.8e12, 141e9),
    )
}


class Machine(NamedTuple):
    """The hardware of each rank."""

    gpu: GPU
    wire_rate: float
    """Bytes per second that a rank sends; 50 GB/s is a 400 Gb/s link per GPU."""
    disk_rate: float
    """Bytes per second that a rank reads from or writes to disk or an object store."""

    def step_seconds(self, products: float, weights: int, factor: float = 1.0) -> float:
        """Seconds of a training step on one device, without communication.

        Fitted to four TopK steps in bf16 on an H200, within 20 %: 4 times the encoder's matmul, 1.4 passes over weights,
        gradients and Adam moments, and half a millisecond of launches.

        Args:
            products: floating-point operations of the encoder.
            weights: number of weights that the optimiser updates.
            factor: cost of the variant relative to TopK.
        """
        return factor * (4.0 * products / self.gpu.flops + 1.4 * 28 * weights / self.gpu.memory_rate) + 0.5e-3

    def rows_per_second(self, n_params: float) -> float:
        """Tokens per second of a language model's forward pass on one device.

        Measured utilisation: 40 % of peak with 2.1 billion parameters, 13 % with 135 million.
        """
        return (0.40 if n_params >= 5e8 else 0.13) * self.gpu.flops / (2 * max(1.0, n_params))


FACTORS = {"matryoshka": 1.13, "batchtopk": 1.35, "absbatchtopk": 1.35}
"""Measured cost of a step, relative to TopK."""
MEASURED = ("topk", "abstopk", *FACTORS)


def gpu_called(name: str) -> GPU:
    """Look up a device by name.

    Raises:
        SaescopeError: unknown name.
    """
    if name not in GPUS:
        raise SaescopeError(f"--gpu {name}: unknown; choose one of {', '.join(GPUS)}.")
    return GPUS[name]
