"""Checkpoints of a group of trainers: one folder each, complete once it has its final name.

    checkpoints/step-00000120/state.json              address of the next batch, counters, versions, hashes
                              MEMBER.safetensors      weights, Adam moments, thresholds, dead counters

Matrices listed in state.json under `turned` are stored transposed; hashes are those of `sae.io.chunks`. The last two
checkpoints are kept. Resuming continues bit for bit with the same machine, thread count and package versions.
"""

import hashlib
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import SaescopeError
from sae.io import chunks
from sae.io.files import atomic_dir, code_version, read_json, read_tensors, remove_all_abandoned, write_json
from sae.io.snapshot import Snapshot
from training.activations.batches import Address
from training.provenance import first_difference
from training.trainer import Trainer

FORMAT, FORMAT_VERSION, KEPT = "saescope-checkpoint", 3, 2
WHAT_THEN = "remove this checkpoint to continue from the previous one, or remove the run to start over."


def surroundings() -> dict[str, Any]:
    """The versions and settings that bit-for-bit continuation depends on."""
    return {
        "code": code_version(), "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "machine": platform.machine(), "n_threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, of a run on data described by `made_from`."""

    folder: Path
    made_from: dict[str, Any]

    def facts(self, trainers: Sequence[Trainer], next_batch: Address) -> dict[str, Any]:
        """The content of state.json for the trainers' current state; synchronises with the device."""
        return {
            "format": FORMAT, "format_version": FORMAT_VERSION, "n_steps": trainers[0].n_steps,
            "next_batch": list(next_batch), "members": [t.config.name for t in trainers],
            "numbers": [t.numbers() for t in trainers], "made_from": self.made_from, "surroundings": surroundings(),
        }

    def write(self, facts: dict[str, Any], snapshots: Sequence[Snapshot]) -> None:
        """Write a checkpoint and remove all but the last two."""
        remove_all_abandoned(self.folder, "step-*")  # a resumed run may not save at the same step again
        with atomic_dir(self.folder / f"step-{facts['n_steps']:08d}") as part:
            places = [part / f"{i:03d}.safetensors" for i in range(len(snapshots))]
            digests = [chunks.write_hashed(p, s.bytes()) for p, s in zip(places, snapshots, strict=True)]
            of_files = {"sha256": digests, "turned": [s.turned for s in snapshots]}
            write_json(part / "state.json", facts | of_files)
        for old in self.finished()[:-KEPT]:
            shutil.rmtree(old)

    def finished(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if p.name.removeprefix("step-").isdigit())

    def load(self, trainers: Sequence[Trainer]) -> tuple[Address, list[str]] | None:
        """Restore trainers from the last checkpoint; return the next batch's address and warnings, or None without one.

        Raises:
            SaescopeError: the checkpoint is damaged, or the training data have changed.
        """
        there = self.finished()
        if not there:
            return None
        try:
            return self._load(there[-1], trainers)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise SaescopeError(
                f"{there[-1]} does not match this run ({type(error).__name__}: {reason}): its files or the activations "
                f"have changed; {WHAT_THEN}"
            ) from error

    def _load(self, place: Path, trainers: Sequence[Trainer]) -> tuple[Address, list[str]]:
        state = _readable(read_json, place / "state.json")
        if state["format"] != FORMAT or state["format_version"] > FORMAT_VERSION:
            raise SaescopeError(f"{place} was written by a later version of Saescope; update it, or start a new run.")
        if state["format_version"] < 2:
            raise SaescopeError(
                f"{place} was written by an old version, which masked rows by the norms of the corpus's first sequences: "
                f"the rest of the run would see different rows than its start. Train it again from its config.yaml under "
                f"another name: `sae train CONFIG name=NAME`."
            )
        tensors = self.tensors(place, state, trainers)
        if (key := first_difference(state["made_from"], self.made_from)) is not None:
            raise SaescopeError(
                f"{place} was trained on other data ({key}); restore them, or start a new run under another name."
            )
        for trainer, theirs, numbers in zip(trainers, tensors, state["numbers"], strict=True):
            trainer.load(theirs, numbers)
        was, now = state["surroundings"], surroundings()
        changed = [f"{key} was {was.get(key)}, is {now[key]}" for key in now if was.get(key) != now[key]]
        return Address(*state["next_batch"]), changed

    def tensors(self, place: Path, state: dict[str, Any], trainers: Sequence[Trainer]) -> list[dict[str, Tensor]]:
        """Read the tensors of each trainer from a checkpoint.

        Raises:
            SaescopeError: a file is missing, damaged or altered, or the checkpoint was written by several ranks.
        """
        if "n_ranks" in state:
            raise SaescopeError(
                f"{place} was saved by {state['n_ranks']} ranks; continue with torchrun, on any number of ranks: "
                "`torchrun --nproc-per-node 1 -m sae.cli train CONFIG --resume`."
            )
        files = [place / f"{i:03d}.safetensors" for i in range(len(trainers))]
        found = [_readable(read_tensors, file) for file in files]
        digest = chunks.digest if state["format_version"] > 2 else _digest_of_version_2
        for file, expected in zip(files, state["sha256"], strict=True):
            if digest(file) != expected:
                raise SaescopeError(f"{file} was altered: its checksum differs; {WHAT_THEN}")
        turned = state["turned"] if state["format_version"] > 2 else [[] for _ in trainers]
        return [t | {name: t[name].t() for name in names} for t, names in zip(found, turned, strict=True)]


def _readable(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        return read(path)
    except SaescopeError as error:
        raise SaescopeError(f"{str(error).partition(';')[0]}; {WHAT_THEN}") from error


def _digest_of_version_2(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
