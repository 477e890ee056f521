"""The same trainings by one process and by several ranks: losses, supports, held-out FVE and bytes on the wire.

    python -m tests.e2e.ranks --steps 200 --out docs/results/ranks.csv
    python -m tests.e2e.ranks --double --out docs/results/ranks-fp64.csv

Six variants, 2 and 4 ranks that share rows, features and both. In fp32 sums in another order round otherwise, and so do
two backends on one process (`reference` beside `cpu`), which is the control: where two activations are equal to rounding,
either may be the k-th largest, or a feature may be dead a step earlier; from there on two trainings differ.

In fp64 (`--double`) nothing is equal to rounding, so that only an error can tell ranks from one process. There the control
is one process in fp32.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import sae
from tests.training.distributed.launched import metrics, train_all, write_rows
from training.config.reading import resolve
from training.distributed.traffic import bytes_per_step

GRIDS = ((0, 1), (2, 1), (2, 2), (4, 1), (4, 4), (4, 2))
"""(ranks, shards); 0 ranks: the control, on one process."""
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"k": 16}, "batchtopk": {"k": 16}, "matryoshka": {"k": 16}, "abstopk": {"k": 16},
    "jumprelu": {"sparsity": {"target_l0": 16}}, "gated": {"sparsity": {"target_l0": 16}},
}
D = 64
WITHIN = 1e-5
"""Relative difference of the loss, the sum of its terms."""


def config(variant: str, rows: str, steps: int, shards: int, kernels: str = "cpu") -> dict[str, Any]:
    """A training with features that die, so that AuxK has something to do."""
    return {
        "name": variant, "model": None, "site": "acts",
        "corpus": {"sources": rows, "held_out": 0.1, "n_ctx": 64},
        "data": {"batch_rows": 512, "superblock_rows": 65_536},
        "sae": {"variant": variant, "d_sae": 768} | VARIANTS[variant],
        "train": {"budget": f"{steps} steps", "device": "cpu", "dead_window": "10000 tokens", "log_every": "1 steps",
                  "checkpoint_every": "100%", "shards": shards, "precision": "fp32", "kernels": kernels},
        "eval": {"n_rows": 10_000, "every": "100%"},
    }


def losses(run: Path) -> list[float]:
    """The loss of each step, the sum of its terms."""
    exact = run.with_name(f"{run.name}.steps.json")
    lines = json.loads(exact.read_text()) if exact.exists() else [line for line in metrics(run) if "l0" in line]
    return [sum(v for key, v in line.items() if key.startswith("loss/")) for line in lines]


def compared(alone: Path, run: Path, steps: int, n: int, shards: int, double: bool) -> dict[str, Any]:
    """A row of the table."""
    variant = run.name
    apart = [abs(a - b) / a for a, b in zip(losses(alone), losses(run), strict=True)]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, run)]
    fve = [summary["heldout"]["fve"] for summary in summaries]
    rows = torch.randn(4000, D, generator=torch.Generator().manual_seed(0))
    kernels, control = ("reference", "fp32") if double else ("cpu", "reference")
    codes = [sae.load(folder, kernels=kernels).encode(rows).csr() for folder in (alone, run)]
    supports = [set((code.rows() * code.d_sae + code.feature).tolist()) for code in codes]
    sent = summaries[1].get("ranks", {}).get("sent_bytes", {})
    predicted = bytes_per_step(resolve(config(variant, "acts:rows", steps, shards))[0], D, D, n) if n else {}
    counted = sum(sent.get(kind, 0) for kind in predicted if kind != "revival")
    return {
        "variant": variant, "ranks": n or f"1 ({control})", "rows": n // shards or 1, "shards": shards,
        "median_loss_difference": f"{sorted(apart)[len(apart) // 2]:.1e}", "worst_loss_difference": f"{max(apart):.1e}",
        "first_step_beyond_1e-5": next((i + 1 for i, x in enumerate(apart) if x > WITHIN), ""),
        "steps_beyond_1e-5": sum(x > WITHIN for x in apart), "last_loss_difference": f"{apart[-1]:.1e}",
        "fve_alone": f"{fve[0]:.6f}", "fve": f"{fve[1]:.6f}",
        "equal_supports": f"{len(supports[0] & supports[1]) / len(supports[0] | supports[1]):.6f}",
        "kB_sent_per_step": f"{sum(sent.values()) / steps / 1000:.1f}",
        # numbers on the wire are predicted to be fp32
        "counted_over_predicted": f"{counted / steps / max(1, sum(predicted.values())):.4f}" if n and not double else "",
    }


def main(steps: int, out: Path, *, double: bool) -> None:
    """All grids, one torchrun each."""
    table: list[dict[str, Any]] = []
    worker, kernels = ("double", "reference") if double else ("worker", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "rows", 120_000, D)
        alone = train_all([config(v, rows, steps, 1, kernels) for v in VARIANTS], 0, Path(folder) / "alone", worker)
        for n, shards in GRIDS:
            members = [config(v, rows, steps, shards, kernels if n else "reference") for v in VARIANTS]
            runs = train_all(members, n, Path(folder) / "ranks", worker if n else "worker")
            table += [compared(alone / v, runs / v, steps, n, shards, double) for v in VARIANTS]
            shutil.rmtree(runs)
            sys.stdout.write("\n".join(str(row) for row in table[-len(VARIANTS):]) + "\n")
            sys.stdout.flush()
    table.sort(key=lambda row: list(VARIANTS).index(row["variant"]))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--double", action="store_true", help="in fp64")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ranks.csv"))
    arguments = parser.parse_args()
    main(arguments.steps, arguments.out, double=arguments.double)
