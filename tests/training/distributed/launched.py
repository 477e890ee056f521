"""torchrun as the tests call it, and what it leaves."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(n: int, *arguments: str, restarts: int = 0) -> list[str]:
    """`torchrun` for n processes of this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", f"--max-restarts={restarts}", "-m", *arguments,
    ]


def environment() -> dict[str, str]:
    """One thread a process, and this checkout."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def train_all(configs: Sequence[dict[str, Any]], n: int, folder: Path, worker: str = "worker") -> Path:
    """Train some configs on n ranks, or without torchrun where n is 0; the folder of their runs."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "configs.json"
    plan.write_text(json.dumps(configs))
    arguments = (f"tests.training.distributed.{worker}", str(plan), str(folder))
    line = command(n, *arguments) if n else [sys.executable, "-m", *arguments]
    done = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr
    return folder


def write_rows(folder: Path, n_rows: int, d: int, n_features: int = 600) -> str:
    """Sparse mixtures of random directions, a few of them frequent, as a corpus that is read quickly; its name."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n_features, d, generator=draw), dim=1)
    often = (12 / torch.arange(1, n_features + 1) ** 0.5 / 45).clamp(max=0.5)
    rows = torch.cat([
        (torch.rand(4096, n_features, generator=draw) < often).float() @ directions for _ in range(-(-n_rows // 4096))
    ])
    rows += 0.05 * torch.randn(rows.shape, generator=draw) / d**0.5
    np.save(folder / "0.npy", rows[:n_rows].numpy())
    return f"acts:{folder}"


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what is a matter of the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
