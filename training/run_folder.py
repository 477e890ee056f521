"""The folder of a run: runs/NAME, or runs/GROUP/NAME (a member of a sweep). Runs are not searched for any deeper."""

from pathlib import Path

from sae.errors import SaescopeError
from sae.io.paths import user_path

LONGEST = 200
"""Most bytes of a folder name: file systems allow 255, and temporary names are longer."""
OF_A_RUN = ("final", "checkpoints", "index", "evals", "wandb")
"""Folders inside a run; a member of a group cannot have these names."""


def fault_of_name(name: str) -> str | None:
    """Why this is not a valid run name, or None if it is."""
    parts = name.split("/")
    if len(parts) > 2:
        return f"{name!r} is {len(parts)} folders deep, but runs can be at most two deep: use NAME or GROUP/NAME"
    for part in parts:
        if not part.strip() or part.startswith("."):
            return f"{name!r} is not a visible folder under runs/ ({part!r} is empty or hidden)"
        if (n_bytes := len(part.encode("utf-8", "replace"))) > LONGEST:
            return f"{part[:20]!r}... has {n_bytes} bytes; a folder name can have at most {LONGEST}"
        if not part.isprintable() or "\\" in part:
            return f"{name!r} contains characters that are not allowed in a folder name; use letters, digits, '-', '_', '.'"
    if len(parts) == 2 and parts[1] in OF_A_RUN:
        return f"{name!r} is reserved for the {parts[1]}/ folder of a run called {parts[0]!r}; choose another name"
    return None


def run_folder(runs: str | Path, name: str) -> Path:
    """The folder of a run.

    Raises:
        SaescopeError: it is a symbolic link that points outside `runs`, where runs are not searched for.
    """
    runs = user_path(runs)
    folder, inside = runs / name, runs.resolve()
    if not folder.resolve().is_relative_to(inside):
        raise SaescopeError(
            f"{folder} is a link to {folder.resolve()}, outside {runs}, where runs are not searched for; link the whole "
            f"runs folder instead, or use another one (--runs)."
        )
    return folder
