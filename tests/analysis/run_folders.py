"""Run folders as a training writes them, made by the training's own writers but without a training."""

import os
from pathlib import Path
from typing import Any

from sae.io.files import write_bytes, write_json
from training.config import reading as configs
from training.loggers import MetricsFile


def write_run(
    root: Path, name: str, *, n_lines: int = 20, finished: bool = True, silent_s: float = 0.0, **overrides: Any
) -> Path:
    """A run of 64 features on 100 × 256 rows; `silent_s` seconds ago it wrote its last line."""
    fields = {
        "name": name, "model": "native:tiny", "site": "blocks.0.hook_resid_post",
        "sae": {"variant": "topk", "d_sae": 64, "k": 4}, "data": {"batch_rows": 256}, "train": {"budget": "100 steps"},
    }
    config = configs.resolve(fields, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])[0]
    folder = root / name
    folder.mkdir(parents=True)
    write_bytes(folder / "config.yaml", config.yaml().encode())
    if n_lines:
        _log(MetricsFile(folder / "metrics.jsonl", keep_steps=0), n_lines)
    if finished:
        write_json(folder / "summary.json", summary(n_lines))
    for file in folder.iterdir():
        when = file.stat().st_mtime - silent_s
        os.utime(file, (when, when))
    return folder


def line(step: int) -> dict[str, float]:
    """A training line."""
    return {
        "step": step, "rows": step * 256, "lr": 1e-3, "loss/reconstruction": 20 / step, "l0": 4.0, "grad_norm": 1.0,
        "fve": 1 - 1 / (step + 1), "dead": min(1.0, step / 400), "tokens_per_s": 2560.0,
    }


def heldout(step: int) -> dict[str, Any]:
    """Held-out figures while training."""
    return {"step": step, "rows": step * 256, "heldout/fve": 0.7, "heldout/fve_interval": [0.69, 0.71],
            "heldout/l0": 4.0, "heldout/n_rows": 2000}


def summary(n_steps: int) -> dict[str, Any]:
    """What the end of a training writes, as far as it is shown."""
    return {
        "d_sae": 64, "variant": "topk", "n_rows_trained": n_steps * 256, "dead": {"share": 0.05, "n": 3},
        "heldout": {"fve": 0.75, "fve_interval": [0.74, 0.76], "l0": 4.0, "l0_interval": [4.0, 4.0],
                    "ce_recovered_mean": 0.9, "ce_recovered_mean_interval": [0.8, 1.0]},
    }


def _log(file: MetricsFile, n_lines: int) -> None:
    for step in range(1, n_lines + 1):
        file.log(line(step))
        if step % 10 == 0:
            file.log(heldout(step))
