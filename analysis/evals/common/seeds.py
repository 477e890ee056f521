"""Find runs that are the same training with other seeds."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.runs import folders
from analysis.trained import TrainedSAE
from sae import store
from sae.errors import SaescopeError
from sae.io.files import read_json
from training.config.reading import read

_NO_MATTER = (
    ("name",), ("sae", "seed"), ("data", "seed"), ("data", "prefetch"), ("data", "mask_hooks"), ("cache", "dir"),
    ("cache", "name"), ("cache", "mode"), ("cache", "shard_rows"), ("train", "device"), ("train", "kernels"),
    ("train", "graph"), ("train", "checkpoint_every"), ("train", "log_every"), ("train", "wandb"), ("eval", "every"),
    ("eval", "n_rows"), ("eval", "n_tokens"), ("model", "device"), ("model", "batch_seqs"),
)
"""Fields that may differ between seeds of one training: the seeds, and where and how it is run."""


def seed_of(trained: TrainedSAE) -> tuple[int, int]:
    """Seeds of the weights and of the row order; unknown for imported SAEs, and 0 here."""
    config = trained.config
    return config.sae.seed, config.data.seed


def other_seeds(trained: TrainedSAE, root: Path) -> list[Path]:
    """Finished runs below `root` that differ from this one only in their seeds, by name; none for an imported SAE."""
    try:
        mine = _key(trained.config.plain())
        own = seed_of(trained)
    except SaescopeError:
        return []
    if trained.sae.provenance.get("imported"):
        return []
    return [folder for folder, key, seeds in _finished(root) if key == mine and seeds != own]


def same_training(folder: Path, among: Sequence[Path]) -> list[tuple[Path, tuple[int, int]]]:
    """Runs among `among` that are the same training as `folder` with any seed, including itself, with their seeds.

    Only reads configs; runs with unreadable configs are skipped.
    """
    found = []
    for one in among:
        config = one / "config.yaml"
        try:
            found.append((one, *_read(config, config.stat().st_mtime_ns)))
        except (SaescopeError, OSError):
            continue
    mine = next((key for one, key, _ in found if one == folder), None)
    return [(one, seeds) for one, key, seeds in found if key == mine]


def weights_of(run: Path) -> str | None:
    """Hash of a run's weights, from its manifest."""
    manifest = run / "final" / store.MANIFEST
    return read_json(manifest).get("weights_sha256") if manifest.is_file() else None


def _finished(root: Path) -> Iterator[tuple[Path, str, tuple[int, int]]]:
    for folder in folders(root):
        config = folder / "config.yaml"
        if not (folder / "summary.json").is_file():
            continue
        try:
            yield folder, *_read(config, config.stat().st_mtime_ns)
        except SaescopeError:  # skip broken runs
            continue


@lru_cache(maxsize=512)
def _read(path: Path, stamp: int) -> tuple[str, tuple[int, int]]:  # noqa: ARG001 (a file that changed is read again)
    config = read(path)[0]
    return _key(config.plain()), (config.sae.seed, config.data.seed)


def _key(fields: dict[str, Any]) -> str:
    """A config without the fields in `_NO_MATTER`, as a key."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in fields.items()}
    for place in _NO_MATTER:
        inside: Any = kept if len(place) == 1 else kept.get(place[0])
        if isinstance(inside, dict):
            inside.pop(place[-1], None)
    return json.dumps(kept, sort_keys=True)
