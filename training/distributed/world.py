"""The interface between `training.run` and the processes of a run, whether one or many.

Under torchrun the ranks first check that they have the same config, code and packages, and then form a grid [rows, shards]:
neighbouring ranks share features, since they communicate most.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import sae as sae_package
from sae.base import SAE
from sae.devices import resolve_device
from sae.errors import SaescopeError, first_line
from sae.io.files import code_version, json_bytes, read_json, write_json
from sae.part import round_of
from sae.ranks import ALONE, Ranks
from training.checkpoint import Checkpoints
from training.config.schema import Config
from training.distributed import launch
from training.distributed.gather import gathered
from training.distributed.ranks import DistributedRanks
from training.distributed.sharded import ShardedCheckpoints
from training.distributed.watch import Watch
from training.distributed.wire import Group, Wire
from training.provenance import first_difference
from training.trainer import Trainer

VARIANTS = ("topk", "batchtopk", "abstopk", "absbatchtopk", "matryoshka", "jumprelu", "gated", "relu")
"""Variants that support distributed training: their sums over features and means over rows are reduced over ranks."""


class World:
    """A single process."""

    ranks: Ranks = ALONE
    is_first = True
    """Whether this rank writes and prints for all."""
    echo_seconds = 0.0
    """How long a second signal counts as the first one: torchrun forwards signals that the terminal also sends to all."""
    row_index, n_rows = 0, 1
    """This rank's index among the ranks that the rows are split over, and their number."""

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes through the block before the others do."""
        yield

    def agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether to stop, which any rank decides, and to save, which the first does."""
        return stop, save

    def broadcast_weights(self, trainers: Sequence[Trainer]) -> None:
        """Give all ranks the weights of the first, where they hold the same ones."""

    def gathered(self, sae: SAE) -> SAE | None:
        """The SAE with all its features, on the first rank; None on the others. A collective."""
        return sae

    def checkpoints(self, folder: Path, made_from: dict[str, Any], trainers: Sequence[Trainer]) -> Checkpoints:
        """The checkpoints below a folder, of a training on data `made_from` these facts."""
        del trainers
        return Checkpoints(folder, made_from)

    def facts(self) -> dict[str, Any]:
        """For a summary."""
        return {}

    def goes_on(self, folder: Path) -> bool:
        """Whether this process automatically continues a run started by an earlier attempt of the same launch."""
        del folder
        return False


class DistributedWorld(World):
    """One of several ranks."""

    def __init__(self, members: Sequence[Config]) -> None:
        """Agree with the others, and form the grid."""
        self.is_first, self.echo_seconds = launch.rank() == 0, 5.0
        self._n_turns = 0
        device = _device(members[0])
        _agree_on(members, device)
        n, shards = launch.n_ranks(), members[0].train.shards
        self.wire = Wire()
        self.watch = Watch(self.wire, members[0].train.patience.seconds)
        # longer than the watchdog's, whose message is more specific
        timeout = timedelta(seconds=2 * members[0].train.patience.seconds + 60)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=dist.PrefixStore("groups", launch.store()),
            rank=launch.rank(), world_size=n, timeout=timeout,
        )
        grid = torch.arange(n).view(n // shards, shards)
        self.mesh = init_device_mesh("cpu", tuple(grid.shape), mesh_dim_names=("rows", "shards"))
        # of the default backends: for tensors of either device
        groups = {axis: _group_of(lines) for axis, lines in (("rows", grid.t()), ("shards", grid))}
        self.saving = dist.new_group(backend="gloo", timeout=timeout)
        world = Group(dist.group.WORLD, n, launch.rank())
        self.row_index, self.n_rows = groups["rows"].index, groups["rows"].n
        self.ranks = self.distributed = DistributedRanks(self.wire, world, groups["shards"], groups["rows"])

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes through the block before the others do; they wait as long as it takes."""
        self._n_turns += 1
        key = f"turn/{self._n_turns}"
        if not self.is_first:
            launch.wait_for(key)
        yield
        if self.is_first:
            launch.store().set(key, "over")

    def agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether to stop, which any rank decides, and to save, which the first does."""
        flags = torch.tensor([stop, save and self.is_first], dtype=torch.uint8)
        stop, save = self.wire.max_(flags, self.distributed.world, "scalars").tolist()
        return bool(stop), bool(save)

    def broadcast_weights(self, trainers: Sequence[Trainer]) -> None:
        """Give all ranks the weights of the first, where they hold the same ones."""
        for trainer in trainers:
            self.distributed.broadcast_weights(trainer.sae)

    def gathered(self, sae: SAE) -> SAE | None:
        """The SAE with all its features, in the first rank's own memory."""
        if self.ranks.n_shards == 1:
            return sae if self.is_first else None
        return gathered(sae, self.distributed) if self.row_index == 0 else None

    def checkpoints(self, folder: Path, made_from: dict[str, Any], trainers: Sequence[Trainer]) -> Checkpoints:
        """Sharded ones."""
        return ShardedCheckpoints(folder, made_from, [t.sae for t in trainers], self.mesh, self.saving)

    def facts(self) -> dict[str, Any]:
        """The grid, and what this rank has sent since it began, in bytes."""
        grid = {"n": self.ranks.n, "rows": self.n_rows, "shards": self.ranks.n_shards}
        return {"ranks": grid | {"sent_bytes": dict(sorted(self.wire.sent.items()))}}

    def goes_on(self, folder: Path) -> bool:
        """True if torchrun has restarted the ranks, and an earlier attempt of the same launch had started the run."""
        mark, mine = folder / "checkpoints" / "launched.json", {"host": socket.gethostname(), "launcher": os.getppid()}
        begun = self.is_first and launch.n_restarts() > 0 and mark.exists() and read_json(mark) == mine
        with self.in_turn():
            if self.is_first:
                launch.store().set("goes_on", "yes" if begun else "no")
        return bool(launch.store().get("goes_on") == b"yes")


def mark_launch(folder: Path) -> None:
    """Record in a run's folder which torchrun launch started or continued it."""
    if launch.is_launched():
        write_json(
            folder / "checkpoints" / "launched.json", {"host": socket.gethostname(), "launcher": os.getppid()}
        )


@contextlib.contextmanager
def world_of(members: Sequence[Config]) -> Iterator[World]:
    """Context with the world of this process; while open, the ranks watch each other.

    Raises:
        SaescopeError: the ranks have different configs or code, or the run cannot be split over that many ranks.
    """
    if not launch.is_launched():
        if (shards := members[0].train.shards) > 1:
            raise SaescopeError(
                f"train.shards = {shards} splits the features over {shards} processes, but there is only one; start with "
                f"`torchrun --nproc-per-node {shards} -m sae.cli train CONFIG`, or set train.shards=1."
            )
        yield World()
        return
    launch.next_training()
    with launch.speaking_once():
        world = DistributedWorld(members)
        with world.watch, _naming(world.watch):
            yield world
        dist.destroy_process_group()


@contextlib.contextmanager
def _naming(watch: Watch) -> Iterator[None]:
    """Turn torch's errors for out-of-memory or a lost rank into a message that names the rank."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
            raise SaescopeError(
                f"rank {launch.rank()} on {socket.gethostname()} ran out of memory ({first_line(error)}); lower "
                f"data.batch_rows or sae.d_sae, or share the features among more ranks (train.shards)."
            ) from error
        if (found := watch.culprit()) is None:
            raise
        raise SaescopeError(found) from error


def _device(member: Config) -> torch.device:
    """The device of this rank: of several GPUs of a machine the one with its local number."""
    device = resolve_device(member.train.device)
    if device.type == "cuda":
        n, mine = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
        if mine >= n:
            raise SaescopeError(f"rank {launch.rank()} is the {mine + 1}th on its machine, which has {n} GPUs; start {n}.")
        torch.cuda.set_device(mine)
    elif device.type != "cpu":
        raise SaescopeError(f"several ranks train on CUDA devices or on the CPU, not on {device}; set train.device=cpu.")
    return device


def _agree_on(members: Sequence[Config], device: torch.device) -> None:
    """Raise SaescopeError unless all ranks have the same config and code, and the run can be split over them."""
    facts = {
        "config": [m.plain() for m in members], "device": device.type, "saescope": code_version(),
        "code": _digest_of_code(), "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
    }
    store, me = launch.store(), launch.rank()
    if me == 0:
        for member in members:
            check_fits(member, launch.n_ranks())
        if len(different := {m.train.shards for m in members}) > 1:
            raise SaescopeError(f"train.shards is {sorted(different)} in one sweep; all members need the same value.")
    store.set(f"facts/{me}", json_bytes(facts))
    launch.wait_for("facts/0")
    if (other := first_difference(json.loads(store.get("facts/0")), facts)) is not None:
        raise SaescopeError(
            f"rank {me} on {socket.gethostname()} differs from rank 0: {other.path} is {other.now!r} here and "
            f"{other.was!r} there; start all ranks with the same config, code and packages."
        )
    store.set(f"agreed/{me}", "yes")
    launch.wait_for(*(f"agreed/{r}" for r in range(launch.n_ranks())))


def check_fits(member: Config, n: int) -> None:
    """Raise SaescopeError unless n ranks can share the training of an SAE."""
    shards, d_sae, batch = member.train.shards, member.sae.d_sae, member.data.batch_rows
    if n == 1 and shards == 1:
        return
    if n % shards:
        raise SaescopeError(f"train.shards = {shards} does not divide the {n} ranks; start a multiple of {shards}.")
    if round_of(d_sae) % shards:
        raise SaescopeError(
            f"sae.d_sae = {d_sae} features are dealt out in rounds of {round_of(d_sae)}, which train.shards = {shards} "
            f"does not divide; choose another number of shards, or a d_sae that is a multiple of {64 * shards}."
        )
    if batch % (n // shards):
        raise SaescopeError(
            f"data.batch_rows = {batch} rows cannot be split evenly over {n // shards} groups of ranks ({n} ranks, "
            f"train.shards = {shards}); make it a multiple of {n // shards}."
        )
    if member.sae.hide and n > shards:
        raise SaescopeError(
            f"sae.hide = {member.sae.hide:g} masks entries of whole batches, which cannot be split over {n // shards} "
            "groups of ranks; set train.shards to the number of ranks, or train with one process."
        )
    if member.sae.variant not in VARIANTS:
        raise SaescopeError(
            f"sae.variant = {member.sae.variant} can only be trained with one process; with several, train one of "
            f"{', '.join(VARIANTS)}."
        )


def _digest_of_code() -> str:
    """The sha256 of all source files that training uses."""
    root, digest = Path(sae_package.__file__).parent.parent, hashlib.sha256()
    for file in sorted(f for package in ("sae", "training") for f in (root / package).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _group_of(lines: torch.Tensor) -> Group:
    """The group of this rank among some that have no rank in common."""
    mine, _ = dist.new_subgroups_by_enumeration(lines.tolist())
    members = next(line for line in lines.tolist() if launch.rank() in line)
    return Group(mine, len(members), members.index(launch.rank()))
