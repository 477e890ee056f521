"""Checkpoints of a group of trainees: one folder each, complete when it has its final name.

    checkpoints/step-00000120/state.json              address of the next batch, counters, versions
                              MEMBER.safetensors      weights, Adam's averages, thresholds, dead counters

The last two are kept. To resume from one continues bit for bit on the same machine, thread count and versions.
"""

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.errors import SaescopeError
from sae.files import atomic_dir, code_version, read_json, read_tensors, write_json, write_tensors
from training.batches import Address
from training.trainee import Trainee

FORMAT, FORMAT_VERSION, KEPT = "saescope-checkpoint", 1, 2
_WHAT_THEN = "remove this checkpoint to continue from the one before it, or the run to begin anew."


def surroundings() -> dict[str, Any]:
    """What bit-for-bit continuation depends on."""
    return {
        "code": code_version(), "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "machine": platform.machine(), "n_threads": torch.get_num_threads(),
    }


def save(folder: Path, trainees: list[Trainee], next_batch: Address) -> None:
    """Write a checkpoint below `folder` and drop all but the last two."""
    n_steps = trainees[0].n_steps
    with atomic_dir(folder / f"step-{n_steps:08d}") as part:
        for i, trainee in enumerate(trainees):
            write_tensors(part / f"{i:03d}.safetensors", trainee.tensors())
        write_json(part / "state.json", {
            "format": FORMAT, "format_version": FORMAT_VERSION, "n_steps": n_steps, "next_batch": list(next_batch),
            "members": [t.config.name for t in trainees], "numbers": [t.numbers() for t in trainees],
            "surroundings": surroundings(),
        })
    for old in finished(folder)[:-KEPT]:
        shutil.rmtree(old)


def finished(folder: Path) -> list[Path]:
    """The whole checkpoints below `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit())


def load(folder: Path, trainees: list[Trainee]) -> tuple[Address, list[str]] | None:
    """Put the last checkpoint's state into trainees; the next batch's address and warnings, or None if there is none."""
    there = finished(folder)
    if not there:
        return None
    try:
        return _load(there[-1], trainees)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SaescopeError(
            f"{there[-1]} does not fit this training ({type(error).__name__}: {reason}): its files, or the activations, "
            f"have changed; {_WHAT_THEN}"
        ) from error


def _load(place: Path, trainees: list[Trainee]) -> tuple[Address, list[str]]:
    try:
        state = read_json(place / "state.json")
        tensors = [read_tensors(place / f"{i:03d}.safetensors") for i in range(len(trainees))]
    except SaescopeError as error:
        raise SaescopeError(f"{str(error).partition(';')[0]}; {_WHAT_THEN}") from error
    if state["format"] != FORMAT or state["format_version"] > FORMAT_VERSION:
        raise SaescopeError(f"{place} was written by a later version of this code; update it, or start a new run.")
    for trainee, theirs, numbers in zip(trainees, tensors, state["numbers"], strict=True):
        trainee.load(theirs, numbers)
    was, now = state["surroundings"], surroundings()
    changed = [f"{key} was {was.get(key)}, is {now[key]}" for key in now if was.get(key) != now[key]]
    return Address(*state["next_batch"]), changed
