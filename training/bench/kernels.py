"""Benchmark training steps: Saescope, dense steps and other libraries, on the same weights and batches.

The contestants alternate step by step, in a new random order each round, so that other load affects all equally. Libraries
that need another environment run in subprocesses, which idle while others step. On a GPU, whole training steps and the best
dense step are included as well (`training.bench.whole_steps`), with several steps per turn.

Each result is compared with a floor measured in the same rounds. *Product*: the encoder matmul, the faster of `torch.mm`
(with preallocated output) and `F.linear` on these tensors, in the contestant's precision. *Traffic*: reading and writing
both weight matrices and their two moments once, which any optimiser that updates every weight must do.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sae.errors import SaescopeError, first_line
from training.bench.compared_steps import Contestant, Dense, Ours, Peer, ours
from training.bench.memory import peaks
from training.bench.setup import SHAPES, Setup, Shape, Stopwatch, machine
from training.bench.whole_steps import CapturedDense, Trained

PEERS = ("SAELens", "dictionary_learning", "sparsify")
VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka")


class Floor:
    """The minimum time of a step, in one precision."""

    def __init__(self, setup: Setup, precision: str) -> None:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.x, self.w = setup.batches[0].to(dtype), setup.W_enc.t().contiguous().to(dtype)
        self.out = torch.empty(self.x.shape[0], self.w.shape[0], dtype=dtype, device=self.x.device)
        self.state = torch.ones(6, *self.w.shape, device=self.x.device)
        self.times: dict[str, list[float]] = {"torch.mm": [], "F.linear": [], "traffic": []}

    def measure(self) -> None:
        """Time the matmul with both functions, and the memory traffic of the weights."""
        watch = Stopwatch(self.x.device)
        torch.mm(self.x, self.w.t(), out=self.out)
        watch.lap("torch.mm")
        F.linear(self.x, self.w)
        watch.lap("F.linear")
        self.state.neg_()
        watch.lap("traffic")
        for name, ms in watch.laps().items():
            self.times[name].append(ms)

    def medians(self) -> dict[str, float]:
        """Median milliseconds of each."""
        return {name: statistics.median(times) for name, times in self.times.items()}


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and minimum."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"median": middle, "q1": low, "q3": high, "min": min(times)}


def contestants(
    setup: Setup, variants: Sequence[str], precisions: Sequence[str], dense: bool, compiled: bool,
    python: Path | None, folder: Path,
) -> tuple[list[Contestant], list[str]]:
    """All contestants, and messages about those that are unavailable."""
    found: list[Contestant] = [
        ours(setup, variant, precision) for precision in precisions for variant in variants
    ]
    if setup.device.type == "cuda":
        found += [ours(setup, "topk", precision, fused_adam=True) for precision in precisions if "topk" in variants]
    # other libraries train in bf16 with autocast, which they only support on GPUs
    beside = dict.fromkeys("bf16" if precision == "fp8" else precision for precision in precisions)
    formats = tuple(beside) if setup.device.type == "cuda" else ("fp32",)
    missing: list[str] = []
    for precision in formats:
        found += [Dense(setup, precision)] if dense else []
        found += [Dense(setup, precision, compiled=True)] if compiled else []
    if setup.device.type == "cuda":
        found += [Trained(setup, variant, precision) for precision in precisions for variant in variants]
        for precision in formats:
            for kind in [False] * dense + [True] * compiled:
                try:
                    found.append(CapturedDense(setup, precision, compiled=kind))
                except RuntimeError as error:  # torch cannot capture or compile it
                    missing.append(f"dense {'torch.compile, ' if kind else ''}captured {precision}: {first_line(error)}")
    if python is not None:
        setup.save(folder / "setup.pt")
        for name in PEERS:
            for precision in formats:
                peer = Peer(name, folder / "setup.pt", python, precision)
                if "missing" in peer.answer:
                    missing.append(f"{name} {precision}: {peer.answer['missing']}")
                    peer.close()
                else:
                    found.append(peer)
    return found, missing


def breakdown(contestant: Ours, n_steps: int = 3) -> dict[str, float]:
    """Milliseconds of each compiled loop in one step; empty on a GPU, where only the parts of the step are timed."""
    from sae.kernels.cpu import runtime

    if contestant.setup.device.type != "cpu":
        return {}
    runtime.timings = {}
    total = sum(contestant.step(i % len(contestant.setup.batches)).ms for i in range(n_steps))
    parts = {name: seconds * 1e3 / n_steps for name, seconds in sorted(runtime.timings.items(), key=lambda p: -p[1])}
    runtime.timings = None
    return parts | {"everything else": total / n_steps - sum(parts.values())}


def measure(
    setup: Setup, field: Sequence[Contestant], *, repeats: int, warmup: int, loss_steps: int, seed: int
) -> dict[str, Any]:
    """Interleaved times of all contestants, with floors, and the losses after `loss_steps` steps."""
    floors = {precision: Floor(setup, precision) for precision in sorted({c.precision for c in field})}
    taken: dict[str, list[dict[str, float]]] = {c.name: [] for c in field}
    first: dict[str, float] = {}
    losses: dict[str, float] = {}
    order = random.Random(seed)
    n_rounds = max(warmup + repeats, loss_steps)
    for i in range(n_rounds):
        keep = warmup <= i < warmup + repeats
        for floor in floors.values() if keep else ():
            floor.measure()
        for c in order.sample(list(field), len(field)):
            step = c.step(i % len(setup.batches))
            losses[c.name] = step.loss
            first.setdefault(c.name, step.ms)
            if keep:
                taken[c.name].append(step.laps)
    medians = {precision: floor.medians() for precision, floor in floors.items()}
    rows = [
        row(c, taken[c.name], medians[c.precision], setup.shape.n_rows)
        | {"first_step_ms": first[c.name], "loss": losses[c.name], "loss_after_steps": n_rounds * c.n_steps_each}
        for c in field
    ]
    return {"floors_ms": medians, "contestants": rows}


def row(contestant: Contestant, taken: Sequence[dict[str, float]], floor: dict[str, float], n_rows: int) -> dict[str, Any]:
    """The results of one contestant."""
    ms = spread([sum(laps.values()) for laps in taken])
    product = min(floor["torch.mm"], floor["F.linear"])
    return {
        "name": contestant.name, "precision": contestant.precision, "ms": ms,
        "rows_per_second": n_rows / ms["median"] * 1e3,
        "parts_ms": {name: statistics.median(laps[name] for laps in taken) for name in taken[0]},
        "product_ms": product, "times_product": ms["median"] / product,
        "share_of_floor": (product + floor["traffic"]) / ms["median"],
    }


def bench_kernels(
    shapes: Sequence[Shape] | None = None, *, device: str = "cpu", repeats: int = 7, warmup: int = 2,
    loss_steps: int = 0, variants: Sequence[str] = VARIANTS, precisions: Sequence[str] | None = None,
    dense: bool = True, compiled: bool = True, dead_shares: Sequence[float] = (0.0, 0.01), peers: Path | None = None,
    memory: bool = True, seed: int = 0,
) -> dict[str, Any]:
    """Time training steps of each shape.

    Args:
        shapes: (n_rows, d_in, d_sae, k) of each step; None means `setup.SHAPES` for the device.
        device: `cpu` or a CUDA device.
        repeats: timed steps per contestant.
        warmup: untimed steps before these; the first includes compilation and is reported separately.
        loss_steps: continue (untimed) to this step, and report the losses there.
        variants: Saescope variants; the first one also with each of `dead_shares`.
        precisions: precision of Saescope's encoder (on CUDA of all contestants); None means fp32, and bf16 if the hardware
            supports it.
        dense: include a dense step in eager torch.
        compiled: include a dense step with torch.compile.
        dead_shares: fractions of dead features; AuxK is on if above 0.
        peers: Python of an environment with other libraries (`make bench-peers`); None skips them.
        memory: measure peak memory too, in separate processes.
        seed: seed of data, weights and order.

    Raises:
        SaescopeError: device not available, or unsupported variant.
    """
    where = checked_device(device)
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise SaescopeError(f"bench: unknown variants {', '.join(unknown)}; choose from {', '.join(VARIANTS)}.")
    if precisions is None:
        precisions = ("bf16", "fp32") if multiplies_bf16(where) else ("fp32",)
    results = []
    for shape in SHAPES[where.type] if shapes is None else shapes:
        for share in dead_shares:
            began = time.perf_counter()
            chosen = variants if share == 0 else variants[:1]
            setup = Setup.make(Shape(*shape), dead_share=share, seed=seed).to(where)
            with tempfile.TemporaryDirectory() as folder:
                field, missing = contestants(setup, chosen, precisions, dense, compiled, peers, Path(folder))
                try:
                    result = measure(setup, field, repeats=repeats, warmup=warmup, loss_steps=loss_steps, seed=seed)
                    result["breakdown_ms"] = {c.name: breakdown(c) for c in field if isinstance(c, Ours)}
                    result["peak_mib"] = peaks(setup, field, share, seed) if memory else {}
                finally:
                    for c in field:
                        c.close()
            head = {"shape": Shape(*shape)._asdict(), "dead_share": share, "repeats": repeats, "missing": missing}
            results.append(head | result | {"seconds": time.perf_counter() - began})
    return {"machine": machine(where), "results": results}


def checked_device(name: str) -> torch.device:
    """Parse a device name and check that the device is available."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SaescopeError(f"bench: {name!r} is not a device; use cpu or cuda.") from None
    if device.type not in SHAPES:
        raise SaescopeError(f"bench: sparse kernels exist for cpu and cuda, not for {device}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SaescopeError(f"bench: torch {torch.__version__} finds no CUDA device; use cpu.")
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device supports bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    from sae.kernels.cpu.backend import bf16_is_fast

    return bf16_is_fast()
