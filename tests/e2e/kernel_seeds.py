"""The same trainings through each kernel backend, from several seeds: do they end alike?

    python -m tests.e2e.kernel_seeds [--out FILE] [KEY=VALUE ...]       prints a Markdown table

Each backend trains one SAE per seed of its weights, all on one stream of the same batches. What counts is whether the
means of two backends differ by less than seeds do within one.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from sae.io.files import write_json
from training.bench.setup import machine
from training.run import sweep

CONFIG = Path("configs/quickstart.yaml")
BACKENDS = {
    "reference": ("train.kernels=reference",),
    "cpu, fp32": ("train.kernels=cpu", "train.precision=fp32"),
    "cpu, bf16 candidates": ("train.kernels=cpu", "train.precision=bf16"),
}
FIGURES = {"fve": "FVE", "dead": "dead", "ce_recovered_mean": "CE recovered (mean)", "ce_recovered_zero": "(zero)"}


def main() -> None:
    """Train, compare, print; finished trainings in --runs are taken over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on from what is there")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: trained(name, args, args.runs or Path(folder)) for name in BACKENDS}
    table(found)
    if args.out is not None:
        write_json(args.out, {"machine": machine(), "config": str(CONFIG), "overrides": args.overrides, "runs": found})


def trained(name: str, args: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """The held-out figures of each seed."""
    seeds = ", ".join(f"{{name: seed-{seed}, sae: {{seed: {seed}}}}}" for seed in range(args.seeds))
    overrides = [f"name={name.replace(', ', '-').replace(' ', '-')}", f"sweep=[{seeds}]", *BACKENDS[name]]
    members = sweep(CONFIG, [*overrides, *args.overrides], runs=runs, resume=True)
    return [
        {"fve": m.summary["heldout"]["fve"], "dead": m.summary["dead"]["share"]}
        | {key: m.summary["heldout"].get(key) for key in ("ce_recovered_mean", "ce_recovered_zero")}
        for m in members
    ]


def table(found: dict[str, list[dict[str, Any]]]) -> None:
    """Mean and range over seeds, per backend."""
    out = sys.stdout.write
    out("| kernels | " + " | ".join(FIGURES.values()) + " |\n" + "|---" * (len(FIGURES) + 1) + "|\n")
    for name, seeds in found.items():
        cells = [cell([seed[key] for seed in seeds]) for key in FIGURES]
        out(f"| {name} | " + " | ".join(cells) + " |\n")


def cell(values: list[float | None]) -> str:
    """`mean [least, largest]`."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.4f} [{min(known):.4f}, {max(known):.4f}]" if known else "–"


if __name__ == "__main__":
    main()
