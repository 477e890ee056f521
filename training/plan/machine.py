"""What a plan assumes of machines: peak figures of makers, and how much of them was reached where it was measured."""

from typing import NamedTuple

from sae.errors import SaescopeError


class GPU(NamedTuple):
    """Peak figures of one device."""

    name: str
    flops: float
    """Of dense bf16 products, per second."""
    memory_rate: float
    """Bytes per second."""
    memory: float
    """Bytes."""


GPUS = {
    gpu.name: gpu for gpu in (
        GPU("a100", 312e12, 2.04e12, 80e9), GPU("h100", 989e12, 3.35e12, 80e9), GPU("h200", 989e12, 4.8e12, 141e9),
    )
}


class Machine(NamedTuple):
    """What ranks run on."""

    gpu: GPU
    wire_rate: float
    """Bytes that a rank sends in a second; 50 GB/s is a link of 400 Gb/s for each GPU."""
    disk_rate: float
    """Bytes that a rank reads or writes in a second, of a disk or a store."""

    def step_seconds(self, products: float, weights: int, factor: float = 1.0) -> float:
        """Of a step of training on one device, apart from what ranks wait for.

        Fitted to four steps of TopK in bf16 on an H200, which it meets within 20 %: the encoder's products count four
        times, passes over weights, gradients and averages 1.4 times, and half a millisecond is launches.

        Args:
            products: floating-point operations of the encoder.
            weights: numbers that the optimiser steps.
            factor: of other variants.
        """
        return factor * (4.0 * products / self.gpu.flops + 1.4 * 28 * weights / self.gpu.memory_rate) + 0.5e-3

    def rows_per_second(self, n_params: float) -> float:
        """Tokens that one device takes through so many parameters of a language model.

        40 % of the peak was reached with 2.1 billion parameters, 13 % with 135 million.
        """
        return (0.40 if n_params >= 5e8 else 0.13) * self.gpu.flops / (2 * max(1.0, n_params))


FACTORS = {"matryoshka": 1.13, "batchtopk": 1.35, "absbatchtopk": 1.35}
"""Steps of these, measured, beside TopK's."""
MEASURED = ("topk", "abstopk", *FACTORS)


def gpu_called(name: str) -> GPU:
    """A device by name.

    Raises:
        SaescopeError: nothing is known of it.
    """
    if name not in GPUS:
        raise SaescopeError(f"--gpu {name}: known are {', '.join(GPUS)}.")
    return GPUS[name]
