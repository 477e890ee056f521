"""Where a run lies: runs/NAME, or runs/GROUP/NAME (a member of a sweep), which is as deep as runs are looked for."""

from pathlib import Path

from sae.errors import SaescopeError
from sae.io.paths import user_path

LONGEST = 200
"""Bytes of a folder's name: file systems take 255, and what is being written has a longer name."""
OF_A_RUN = ("final", "checkpoints", "index", "evals", "wandb")
"""Folders inside a run, which no member of a group may be called."""


def fault_of_name(name: str) -> str | None:
    """Why no run can be called so, if none can."""
    parts = name.split("/")
    if len(parts) > 2:
        return f"{name!r} lies {len(parts)} folders deep, and runs are found two deep at most: write NAME or GROUP/NAME"
    for part in parts:
        if not part.strip() or part.startswith("."):
            return f"{name!r} names no folder below runs/ that is shown ({part!r} is empty or hidden)"
        if (n_bytes := len(part.encode("utf-8", "replace"))) > LONGEST:
            return f"{part[:20]!r}... has {n_bytes} bytes; a folder's name has {LONGEST} at most"
        if not part.isprintable() or "\\" in part:
            return f"{name!r} holds characters that no folder's name should have; take letters, digits, '-', '_', '.'"
    if len(parts) == 2 and parts[1] in OF_A_RUN:
        return f"{name!r} would lie where the run {parts[0]!r} keeps its {parts[1]}/; choose another name"
    return None


def run_folder(runs: str | Path, name: str) -> Path:
    """The folder of a run.

    Raises:
        SaescopeError: it is a link that leads out of `runs`, where no run is looked for.
    """
    runs = user_path(runs)
    folder, inside = runs / name, runs.resolve()
    if not folder.resolve().is_relative_to(inside):
        raise SaescopeError(
            f"{folder} is a link that leads out of {runs}, to {folder.resolve()}, where no run is looked for; link the "
            f"folder of all runs instead, or write into another one (--runs)."
        )
    return folder
