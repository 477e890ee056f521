"""Runs over the tiny native model, as far as reading and steering need them, without a training."""

from pathlib import Path
from typing import Any

import torch

from sae import store
from sae.base import SAE
from sae.variants.topk import TopK, TopKConfig
from training.model.language_model import Model
from training.model.load import load_model

HOOK = "blocks.0.hook_resid_post"


def write_live_run(root: Path, *, target: str | None = None, **facts: Any) -> tuple[Path, SAE, Model]:
    """A run with a random SAE of 64 features, k = 4."""
    model = load_model("native:tiny")
    generator = torch.Generator().manual_seed(0)
    sae = TopK(TopKConfig(variant="topk", d_sae=64, k=4), 32)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(32, 64, generator=generator))
        rows = sae.W_enc.t() + 0.3 * torch.randn(64, 32, generator=generator)
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.b_enc.copy_(0.1 * torch.randn(64, generator=generator))
    folder = root / "live"
    provenance = {
        "site": {"input": HOOK, "target": target, "update": False}, "made_from": {"model": model.identity},
        "config": {"model": {"name": "native:tiny", "device": "cpu", "dtype": "float32"}}, **facts,
    }
    store.save(sae, folder / "final", provenance=provenance)
    return folder, store.load(folder), model
