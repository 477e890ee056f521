"""Benchmark whole runs (from a cache, own rows, a stream) and filling a cache, against the limit set by their parts.

Runs use the code path of `sae train` with default configs, and are measured in steady state. Their parts are measured in
the same process, alternating with them (`training.bench.legs`). The share is our throughput divided by the limit:

    fill           the slowest of: model, writing, copying from the device
    cache, rows    the slowest of: step, reading, copying to the device
    stream         model and step one after the other, 1 / (1 / model + 1 / step)
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sae.devices import resolve_device
from sae.errors import SaescopeError
from training.bench.legs import Legs, Size
from training.bench.setup import machine
from training.display import Display

SIZES = {
    "small": Size(
        d_in=128, d_sae=2048, k=16, batch_rows=1024, n_layers=2, n_heads=4, d_mlp=512, n_ctx=128, n_tokens=131_072,
        superblock_rows=32_768,
    ),
    "gpt2": Size(
        d_in=768, d_sae=16_384, k=32, batch_rows=4096, n_layers=9, n_heads=12, d_mlp=3072, n_ctx=256, n_tokens=2_097_152,
        superblock_rows=524_288,
    ),
    "large": Size(
        d_in=2304, d_sae=65_536, k=64, batch_rows=8192, n_layers=13, n_heads=18, d_mlp=9216, n_ctx=256, n_tokens=786_432,
        superblock_rows=262_144,
    ),
}
"""`small` is for a CPU. The other networks are as wide as GPT-2 and Gemma 2 2B, and as deep as the block that is read."""
PARTS = {
    "fill": ("model", "write", "from_device"), "cache": ("step", "read", "to_device"),
    "rows": ("step", "read", "to_device"), "stream": ("model", "step"),
}
"""What is measured (legs), and the parts that limit each."""


def bench_e2e(
    sizes: Sequence[str] = ("small",), *, legs: Sequence[str] = tuple(PARTS), device: str = "auto", seconds: float = 4.0,
    rounds: int = 1, overrides: Sequence[str] = (), folder: Path | None = None, quiet: bool = False,
) -> dict[str, Any]:
    """Measure training runs and cache filling, and their parts.

    Args:
        sizes: names in `SIZES`.
        legs: what to measure, keys of `PARTS`.
        device: device of model and SAE.
        seconds: how long each run is measured in steady state; each part for a quarter of that.
        rounds: number of repetitions; results are medians.
        overrides: config overrides of the runs, as in `sae train`: `sae.variant=batchtopk`.
        folder: scratch folder, removed afterwards; choose the disk to measure.
        quiet: print no progress.

    Raises:
        SaescopeError: unknown size or leg, or an invalid config.
    """
    for what, there, asked in (("size", SIZES, sizes), ("leg", PARTS, legs)):
        if unknown := [name for name in asked if name not in there]:
            raise SaescopeError(f"bench e2e: {unknown[0]!r} is not a {what}; choose from {', '.join(there)}.")
    where, display = resolve_device(device), Display(quiet=quiet)
    results = []
    for name in sizes:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="bench-e2e-", dir=folder) as root:
            measured = Legs(Path(root), SIZES[name], where, seconds, overrides, say=partial(_say, display, name, began))
            for _ in range(rounds):
                measured.once([leg for leg in PARTS if leg in legs])
        found = {leg: figures(leg, measured.rates) for leg in PARTS if leg in legs}
        results.append({
            "size": name, **asdict(SIZES[name]), "overrides": list(overrides), **measured.facts, "legs": found,
            "took_s": time.perf_counter() - began,
        })
    return {"machine": machine(where), "results": results}


def _say(display: Display, name: str, began: float, text: str) -> None:
    display.say(f"{name}, {time.perf_counter() - began:.0f} s: {text}")


def figures(leg: str, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Tokens per second of a leg and of its parts, and the leg's share of the limit.

    Args:
        leg: a key of `PARTS`.
        rates: measured rates by name, of the leg and its parts; a part may have a separate rate per leg, as `step cache`.
    """
    ours = statistics.median(rates[leg])
    found = {part: rates.get(f"{part} {leg}", rates.get(part)) for part in PARTS[leg]}
    parts = {part: statistics.median(values) for part, values in found.items() if values}
    allowed = allows(leg, parts)
    return {
        "tokens_per_s": ours, "tokens_per_s_range": [min(rates[leg]), max(rates[leg])], "parts_tokens_per_s": parts,
        "slowest": min(parts, key=parts.__getitem__), "allowed_tokens_per_s": allowed, "share": ours / allowed,
    }


def allows(leg: str, parts: Mapping[str, float]) -> float:
    """The limit in tokens per second: that of the slowest part if parts can overlap, else of all in sequence."""
    return 1 / sum(1 / value for value in parts.values()) if leg == "stream" else min(parts.values())
