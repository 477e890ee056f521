"""Peak memory of a training with 262,144 features, by one process and by 4 ranks that share them.

    python -m tests.e2e.rank_memory --out docs/results/rank-memory.csv

A small training first: what libraries and compiled loops take is not counted, only what is added to it. The peak is that of
steps and checkpoints; at the end the first rank holds the weights of all features once, in the machine's memory.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.training.distributed.launched import ROOT, command, environment, write_rows

D, D_SAE = 64, 262_144


def config(name: str, rows: str, d_sae: int, shards: int) -> dict[str, Any]:
    """A few steps, with two checkpoints among them."""
    return {
        "name": name, "model": None, "site": "acts",
        "corpus": {"sources": rows, "held_out": 0.1, "n_ctx": 32},
        "data": {"batch_rows": 256, "superblock_rows": 4096, "n_calib": 32},
        "sae": {"variant": "topk", "d_sae": d_sae, "k": 32},
        "train": {"budget": "6 steps", "device": "cpu", "checkpoint_every": "3 steps", "shards": shards},
        "eval": {"n_rows": 256},
    }


def status(key: str) -> int:
    """A line of this process' status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def worker(folder: Path, shards: int) -> None:
    """One process or rank."""
    from training.distributed import launch
    from training.run import train
    from training.trainer import Trainer

    rows = f"acts:{folder / 'rows'}"
    train(config("small", rows, 3072, shards), runs=folder, quiet=True)
    before, peak, step = status("VmRSS"), [0], Trainer.step
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def counted(self: Trainer, acts: Any) -> None:
        step(self, acts)
        peak[0] = status("VmHWM")

    Trainer.step = counted  # type: ignore[method-assign]
    train(config("large", rows, D_SAE, shards), runs=folder, quiet=True)
    found = {"added": peak[0] - before, "at_the_end": status("VmHWM") - before}
    (folder / f"{launch.rank()}.json").write_text(json.dumps(found))


def main(out: Path) -> None:
    """Both, and their ratio."""
    table = []
    for n in (0, 4):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows", 8000, D)
            arguments = ("tests.e2e.rank_memory", "--worker", folder, "--shards", str(n or 1))
            line = command(n, *arguments) if n else [sys.executable, "-m", *arguments]
            subprocess.run(line, env=environment(), cwd=ROOT, check=True)
            for file in sorted(Path(folder).glob("*.json")):
                found = json.loads(file.read_text())
                megabytes = {f"{key}_MB": f"{value / 1e6:.0f}" for key, value in found.items()}
                table.append({"processes": n or 1, "rank": file.stem} | megabytes)
    for row in table:
        row["share"] = f"{int(row['added_MB']) / int(table[0]['added_MB']):.3f}"
        sys.stdout.write(f"{row}\n")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/rank-memory.csv"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.shards)
    else:
        main(given.out)
