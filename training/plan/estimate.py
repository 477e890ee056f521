"""Memory, communication, disk and time of a run on each possible grid of ranks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.errors import SaescopeError
from training.activations.cache import STORED
from training.config.schema import Config
from training.distributed.traffic import bytes_per_step
from training.memory import PER_SAVED_WEIGHT, PER_SCORE, PER_WEIGHT
from training.plan.machine import FACTORS, MEASURED, Machine
from training.plan.sizes import Grid, Rows, SAESizes, rows_of, sae_sizes, share_run
from training.schedule import Clock

CONTEXT = 1e9
"""Bytes per device taken by CUDA and libraries."""
ROUND = 960
"""Features are dealt to shards in rounds of gcd(d_sae, 960); the number of shards must divide that."""


class OnGrid(NamedTuple):
    """What each rank needs on one grid."""

    grid: Grid
    device: dict[str, int]
    """Bytes of device memory, by purpose."""
    host: dict[str, int]
    """Bytes of host memory, by purpose."""
    wire: dict[str, int]
    """Bytes sent per step, by purpose."""
    step_seconds: float
    """Seconds per step, including communication, if data loading keeps up."""
    training_seconds: float

    @property
    def device_bytes(self) -> int:
        """Total bytes of device memory."""
        return sum(self.device.values())

    @property
    def wire_bytes(self) -> int:
        """Total bytes sent per step while no feature is dead."""
        return sum(n for what, n in self.wire.items() if what != "revival")


class Plan(NamedTuple):
    """The estimate for a run."""

    rows: Rows
    saes: list[SAESizes]
    clock: Clock
    cache_seconds: float
    disk: dict[str, int]
    grids: list[OnGrid]
    """By number of shards, ascending."""
    assumptions: list[str]

    def best(self, memory: float) -> OnGrid | None:
        """The fastest grid that fits in `memory` bytes per device."""
        fitting = [one for one in self.grids if one.device_bytes <= memory]
        return min(fitting, key=lambda one: one.training_seconds, default=None)


def plan(
    members: Sequence[Config], n_gpus: int, machine: Machine, *, widths: Mapping[str, int] | None = None,
    n_params: int | None = None,
) -> Plan:
    """Estimate what these runs, which share one stream, need on `n_gpus` ranks; see `sizes.rows_of`.

    Raises:
        SaescopeError: unknown sizes, or no grid of that many ranks divides features and rows.
    """
    first = members[0]
    rows = rows_of(members, widths, n_params)
    saes = [sae_sizes(member, rows.widths) for member in members]
    clock = Clock.of(first.train.budget, batch_rows=first.data.batch_rows, epoch_rows=rows.n_training)
    grids = [Grid(n_gpus, s) for s in range(1, n_gpus + 1) if n_gpus % s == 0]
    possible = [g for g in grids if _divides(g, saes, first.data.batch_rows)]
    if not possible:
        raise SaescopeError(
            f"{n_gpus} ranks divide neither data.batch_rows = {first.data.batch_rows} nor rounds of "
            f"{', '.join(f'{math.gcd(sae.d_sae, ROUND)}' for sae in saes)} features; choose another number of ranks."
        )
    on = [_on_grid(g, members, saes, rows, clock, machine) for g in possible]
    return Plan(rows, saes, clock, _cache_seconds(first, rows, n_gpus, machine), _disk(first, saes, rows), on,
                _assumptions(members, machine))


def _divides(grid: Grid, saes: Sequence[SAESizes], batch_rows: int) -> bool:
    return batch_rows % grid.rows == 0 and all(math.gcd(sae.d_sae, ROUND) % grid.shards == 0 for sae in saes)


def row_bytes(config: Config, rows: Rows) -> int:
    """Bytes of one stored row, over all hooks, without norms."""
    return sum(rows.widths.values()) * np.dtype(STORED[config.cache.dtype]).itemsize


def _on_grid(
    grid: Grid, members: Sequence[Config], saes: Sequence[SAESizes], rows: Rows, clock: Clock, machine: Machine
) -> OnGrid:
    first = members[0]
    mine = clock.batch_rows // grid.rows
    weights = [sae.own // grid.shards + sae.common for sae in saes]
    superblock = min(first.data.superblock_rows, rows.n_training) * (row_bytes(first, rows) + 8)
    device = {
        "weights, gradients, Adam": PER_WEIGHT * sum(weights),
        "one step": max(
            2 * n + PER_SCORE * (sae.d_sae // grid.shards) * mine + 12 * sae.n_prefixes * mine * sae.d_out
            for n, sae in zip(weights, saes, strict=True)
        ),
        "language model": 2 * rows.model.n_params if rows.model else 0,
        "CUDA": int(CONTEXT),
    }
    superblocks = (1 + first.data.prefetch) * superblock
    fits = sum(device.values()) + superblocks <= 0.9 * machine.gpu.memory
    host = {
        "checkpoint": PER_SAVED_WEIGHT * sum(weights), "norms and tokens": (4 * len(rows.widths) + 5) * rows.n,
        "superblocks": 0 if fits else superblocks,
    }
    device["superblocks"] = superblocks if fits else 0
    wires = [_wire(m, sae, grid) for m, sae in zip(members, saes, strict=True)]
    wire = {what: sum(one[what] for one in wires) for what in wires[0]}
    sent = sum(n for what, n in wire.items() if what != "revival")
    step = sent / machine.wire_rate + sum(
        machine.step_seconds(2.0 * mine * sae.d_in * sae.d_sae / grid.shards * sae.n_passes, n, FACTORS.get(variant, 1.0))
        for variant, sae, n in zip((m.sae.variant for m in members), saes, weights, strict=True)
    )
    reading = clock.batch_rows * row_bytes(first, rows) / machine.disk_rate
    if first.cache.mode == "stream":
        reading = _forward_seconds(rows, clock.batch_rows, 1, machine)
    return OnGrid(grid, device, host, wire, step, clock.n_steps * max(step, reading))


def _wire(member: Config, sae: SAESizes, grid: Grid) -> dict[str, int]:
    """Bytes that a rank sends per step, by purpose; `revival` is the extra while all features are dead."""
    train = member.train.model_copy(update={"shards": grid.shards})
    config = member.model_copy(update={"train": train})
    usual, dead = (bytes_per_step(config, sae.d_in, sae.d_out, grid.n, n) for n in (0, sae.d_sae // grid.shards))
    return {**usual, "revival": sum(dead.values()) - sum(usual.values())}


def _forward_seconds(rows: Rows, n_rows: int, n_gpus: int, machine: Machine) -> float:
    if rows.model is None:
        return 0.0
    used = (rows.model.n_params - rows.model.n_embedding) * share_run(list(rows.widths), rows.model.n_layers)
    return n_rows / (n_gpus * machine.rows_per_second(used))


def _cache_seconds(config: Config, rows: Rows, n_gpus: int, machine: Machine) -> float:
    if rows.model is None or config.cache.mode == "stream":
        return 0.0
    writing = rows.n * row_bytes(config, rows) / (n_gpus * machine.disk_rate)
    return max(_forward_seconds(rows, rows.n, n_gpus, machine), writing)


def _disk(config: Config, saes: Sequence[SAESizes], rows: Rows) -> dict[str, int]:
    weights = sum(sae.own + sae.common for sae in saes)
    cached = rows.model is not None and config.cache.mode == "disk"
    return {
        "cache": rows.n * (row_bytes(config, rows) + 4 * len(rows.widths) + 6) if cached else 0,
        "checkpoints": 3 * PER_SAVED_WEIGHT * weights, "trained SAEs": 8 * weights,
    }


def _assumptions(members: Sequence[Config], machine: Machine) -> list[str]:
    gpu, first = machine.gpu, members[0]
    said = [
        f"a {gpu.name} has {gpu.memory / 1e9:.0f} GB, {gpu.flops / 1e12:.0f} TFLOP/s of dense bf16 and "
        f"{gpu.memory_rate / 1e12:.2f} TB/s; a rank sends {machine.wire_rate / 1e9:.0f} GB/s and reads or writes "
        f"{machine.disk_rate / 1e9:.1f} GB/s",
        "a step takes 4.0 times the encoder's matmul at peak FLOP/s, 1.4 passes over weights, gradients and Adam moments, "
        "and 0.5 ms (fitted to four TopK steps on an H200, within 20 %)",
        "communication doesn't overlap with compute, and collectives use a ring (training/distributed/traffic.py)",
        "reading overlaps with training; every rank reads whole superblocks and takes its part of each batch",
        "all ranks fill the cache, at 40 % of peak FLOP/s for models of 0.5 billion parameters or more, 13 % for smaller "
        "ones; attention scores are not counted",
        "for text, the fraction corpus.held_out of all rows is held out, and no row is masked",
        f"CUDA takes {CONTEXT / 1e9:.0f} GB of each device; the language model stays loaded, in 16 bits",
        "three checkpoints are on disk while one is written; evaluation, and AuxK while features are dead, are extra",
    ]
    if unknown := sorted({m.sae.variant for m in members} - set(MEASURED)):
        said.append(f"steps of {', '.join(unknown)} were not measured at these sizes; TopK's cost is used")
    if first.cache.mode == "stream":
        said.append("with cache.mode=stream every rank computes all rows")
    return said


def facts(found: Plan) -> dict[str, Any]:
    """The plan as plain values, for JSON."""
    return {
        "n_rows": found.rows.n, "widths": found.rows.widths, "n_steps": found.clock.n_steps,
        "model_params": found.rows.model.n_params if found.rows.model else None,
        "cache_seconds": found.cache_seconds, "disk_bytes": found.disk,
        "grids": [
            {"ranks": one.grid.n, "shards": one.grid.shards, "device_bytes": one.device, "host_bytes": one.host,
             "wire_bytes_per_step": one.wire, "step_seconds": one.step_seconds, "training_seconds": one.training_seconds}
            for one in found.grids
        ],
        "assumptions": found.assumptions,
    }
