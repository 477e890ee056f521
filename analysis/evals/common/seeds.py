"""Which runs are the same training from other seeds."""

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
"""What two seeds of one training may differ in: the seeds, and what decides only where and how it is run."""


def seed_of(trained: TrainedSAE) -> tuple[int, int]:
    """The seeds of weights and of the order of rows; those an imported SAE had are unknown, and 0 here."""
    config = trained.config
    return config.sae.seed, config.data.seed


def other_seeds(trained: TrainedSAE, root: Path) -> list[Path]:
    """Finished runs below `root` that differ from this one in their seeds alone, by name; none of an imported SAE."""
    try:
        mine = _key(trained.config.plain())
        own = seed_of(trained)
    except SaescopeError:
        return []
    if trained.sae.provenance.get("imported"):
        return []
    return [folder for folder, key, seeds in _finished(root) if key == mine and seeds != own]


def same_training(folder: Path, among: Sequence[Path]) -> list[tuple[Path, tuple[int, int]]]:
    """Of some runs those that are the training of `folder` from any seed, it among them, with their seeds.

    Only configs are read; one that cannot be is nobody's.
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
    """What names a run's weights, as its manifest has it."""
    manifest = run / "final" / store.MANIFEST
    return read_json(manifest).get("weights_sha256") if manifest.is_file() else None


def _finished(root: Path) -> Iterator[tuple[Path, str, tuple[int, int]]]:
    for folder in folders(root):
        config = folder / "config.yaml"
        if not (folder / "summary.json").is_file():
            continue
        try:
            yield folder, *_read(config, config.stat().st_mtime_ns)
        except SaescopeError:  # a broken run is no seed of this one
            continue


@lru_cache(maxsize=512)
def _read(path: Path, stamp: int) -> tuple[str, tuple[int, int]]:  # noqa: ARG001 (a file that changed is read again)
    config = read(path)[0]
    return _key(config.plain()), (config.sae.seed, config.data.seed)


def _key(fields: dict[str, Any]) -> str:
    """A config without what does not matter."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in fields.items()}
    for place in _NO_MATTER:
        inside: Any = kept if len(place) == 1 else kept.get(place[0])
        if isinstance(inside, dict):
            inside.pop(place[-1], None)
    return json.dumps(kept, sort_keys=True)
