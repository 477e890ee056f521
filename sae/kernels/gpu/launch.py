"""Launching Triton kernels, and choosing tile sizes and warps.

Every launch goes through `launch`, so that the ahead-of-time check (`sae.kernels.gpu.ahead_of_time`) can record and compile
exactly the kernels that would run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """A recorded launch."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int


_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


def recording() -> bool:
    """Whether launches are being recorded, in which case tensors have no data."""
    return _recording.get() is not None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches instead of running them; results of the launching functions are then undefined."""
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument; does nothing for an empty grid."""
    assert all(size < 65536 for size in grid[1:]), grid
    if 0 in grid:
        return
    launches = _recording.get()
    if launches is not None:
        launches.append(Launch(kernel, args, constants, num_warps))
        return
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, num_warps=num_warps, enable_fp_fusion=True, **constants)


def power_of_2(n: int) -> int:
    """The smallest power of two ≥ max(n, 1)."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def tile_width(d: int, widest: int = 512) -> int:
    """A power-of-two tile width that covers d columns with few tiles and little padding."""
    widths = [w for w in (128, 256, 512, 1024) if w <= widest]
    # a tile costs about as much as 64 padding columns
    return min(widths, key=lambda w: (ceil_div(d, w) * (w + 64), w)) if d > 64 else max(16, power_of_2(d))


def two_blocks(d: int) -> tuple[int, int]:
    """Two powers of two that cover d columns with little padding: the larger one at most d, the second possibly 0."""
    first = max(16, power_of_2(d + 1) // 2)
    return first, 0 if first >= d else power_of_2(d - first)


def warps_for(width: int, rows: Tensor) -> int:
    """Number of warps such that a row is one 16-byte load per thread, so sums over rows stay within a thread."""
    return min(16, max(1, width * rows.element_size() // 512))
