"""Setup of the kernel benchmark: sizes of a step, weights and batches, timing, and facts about the machine."""

import os
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LR, BETAS, EPS, CLIP = 2e-4, (0.9, 0.999), 1e-8, 1.0


class Shape(NamedTuple):
    """The size of a step."""

    n_rows: int
    d_in: int
    d_sae: int
    k: int


SHAPES = {
    "cpu": (Shape(2048, 768, 16_384, 32), Shape(1024, 576, 4_608, 32), Shape(1024, 768, 65_536, 64)),
    "cuda": (Shape(8192, 2304, 65_536, 64), Shape(4096, 768, 16_384, 32), Shape(16_384, 768, 131_072, 64)),
}
"""Default sizes, by device type."""


@dataclass(frozen=True)
class Setup:
    """The initial weights and batches, the same for all contestants."""

    shape: Shape
    batches: Float[Tensor, "n_batches n_rows d_in"]
    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    dead: Bool[Tensor, " d_sae"] | None

    @classmethod
    def make(cls, shape: Shape, *, n_batches: int = 8, dead_share: float = 0.0, seed: int = 0) -> "Setup":
        """Random rows like activations: sparse sums of many directions with heavy-tailed frequencies; tied weights."""
        draw = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(2 * shape.d_in, shape.d_in, generator=draw), dim=1)
        odds = 1 / torch.arange(1, len(atoms) + 1)
        batches = []
        for _ in range(n_batches):
            chosen = torch.multinomial(odds.expand(shape.n_rows, -1), 24, generator=draw)
            size = torch.rand(shape.n_rows, 24, generator=draw) * 4
            rows = torch.einsum("rc,rcd->rd", size, atoms[chosen])
            batches.append(rows + 0.3 * torch.randn(shape.n_rows, shape.d_in, generator=draw))
        rows = torch.randn(shape.d_sae, shape.d_in, generator=draw)
        rows /= rows.norm(dim=1, keepdim=True)
        dead = None
        if dead_share:
            dead = torch.rand(shape.d_sae, generator=draw) < dead_share
        return cls(shape, torch.stack(batches), rows.clone().t(), rows, dead)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.batches.device

    def to(self, device: torch.device) -> "Setup":
        """Copy to another device."""
        dead = None if self.dead is None else self.dead.to(device)
        return replace(
            self, batches=self.batches.to(device), W_enc=self.W_enc.to(device), W_dec=self.W_dec.to(device), dead=dead
        )

    def save(self, path: Path) -> None:
        """Save for the workers of other libraries."""
        fields = {"batches": self.batches, "W_enc": self.W_enc, "W_dec": self.W_dec, "dead": self.dead}
        torch.save(
            fields | {"k": self.shape.k, "lr": LR, "n_threads": torch.get_num_threads(), "device": str(self.device)},
            path,
        )


class Stopwatch:
    """Times consecutive laps of work on a device, in milliseconds.

    Uses events on CUDA, so device time is measured without blocking the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []
        self.lap("")

    def lap(self, name: str) -> None:
        """End the current lap, from the host's point of view."""
        mark: Any = time.perf_counter()
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(self.device))
        self.marks.append((name, mark))

    def laps(self) -> dict[str, float]:
        """Milliseconds of each lap; synchronises with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return {name: self.between(begin, end) for (_, begin), (name, end) in pairs}

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds from one mark to another."""
        return begin.elapsed_time(end) if self.device.type == "cuda" else (end - begin) * 1e3


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Facts about the machine and software that results depend on."""
    found = {
        "processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability(), "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
    if device is not None and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {"gpu": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}", "cuda": torch.version.cuda}
    return found


def processor() -> str:
    """The processor's name, if available."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def file_name(what: str, figures: dict[str, Any]) -> str:
    """Default name of a results file: `kernels-nvidia-h100.json`, `kernels-amd-epyc-avx2.json`."""
    found = figures["machine"]
    device = found.get("gpu") or f"{found['processor']} {found['instructions']}"
    return f"{what}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
