"""Small trainings, of every variant that ranks can share."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.training.distributed.launched import write_rows
from training.config.reading import resolve
from training.config.schema import Config

D, STEPS = 16, 10
AUXK = {"auxk": {"coefficient": 0.5, "k": 6}}
STEERED = {"sparsity": {"target_l0": 6}}
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4} | AUXK, "abstopk": {"k": 4}, "batchtopk": {"k": 4}, "absbatchtopk": {"k": 4},
    "matryoshka": {"k": 4, "prefixes": [5, 24, 96]} | AUXK, "jumprelu": STEERED | AUXK, "gated": STEERED | AUXK,
    "relu": STEERED,
    "whitened": {"variant": "topk", "k": 4, "transform": {"whiten": True, "unit_rows": True}},
}


@functools.cache
def rows() -> str:
    """What is trained on: written once, and gone at the end. Ranks are forked from the process that has written it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return write_rows(Path(folder), 6000, D, 100)


def config(variant: str, *, shards: int = 1, name: str | None = None, **train: Any) -> dict[str, Any]:
    """A config as a dict. AuxK has something to do: features are dead after a few steps."""
    settings = {
        "budget": f"{STEPS} steps", "device": "cpu", "dead_window": "128 tokens", "log_every": "1 steps",
        "checkpoint_every": "4 steps", "precision": "fp32", "shards": shards,
    }
    return {
        "name": name or variant, "model": None, "site": "acts",
        "corpus": {"sources": rows(), "held_out": 0.1, "n_ctx": 16},
        "data": {"batch_rows": 64, "superblock_rows": 1024, "block_rows": 16, "n_calib": 20},
        "sae": {"variant": variant, "d_sae": 96} | VARIANTS[variant],
        "optim": {"lr": 2e-3}, "train": settings | train, "eval": {"n_rows": 160, "every": "100%"},
    }


def resolved(variant: str, **options: Any) -> Config:
    """The same, checked."""
    return resolve(config(variant, **options))[0]
