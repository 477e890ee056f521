"""configs/sweep.yaml on one stream, then its six members one by one: equal bytes, and the time of both.

    python -m tests.e2e.sweep_times            prints a Markdown table for README
"""

import sys
import tempfile
import time
from pathlib import Path

from training.finish import Result
from training.run import sweep

CONFIG = Path("configs/sweep.yaml")
FILES = ("final/sae.safetensors", "final/sae.json", "sae_weights.safetensors", "cfg.json")


def main() -> None:
    """Train, compare, print."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"cache.dir={folder}/cache"]
        # the cache is filled first, so that both sides read the same one and only training is compared
        sweep(CONFIG, [*overrides, "name=warm", "train.budget=1 steps", "eval.n_tokens=0"], runs=f"{folder}/warm")
        together, seconds = timed(CONFIG, overrides, Path(folder) / "together")
        alone = []
        for member in together:
            name = f"name={member.summary['name'].replace('/', '-')}"
            (one,), took = timed(member.run / "config.yaml", [name], Path(folder) / "alone")
            for file in FILES:
                here, there = member.run / file, one.run / file
                assert here.exists() == there.exists() and (not here.exists() or here.read_bytes() == there.read_bytes())
            alone.append(took)
        report(together, seconds, alone)


def timed(config: Path, overrides: list[str], runs: Path) -> tuple[list[Result], float]:
    """Train and say how long it took, evaluation included."""
    began = time.monotonic()
    trained = sweep(config, overrides, runs=runs)
    return trained, time.monotonic() - began


def report(together: list[Result], seconds: float, alone: list[float]) -> None:
    """The table, and the two sums."""
    out = sys.stdout.write
    out("| SAE | L0 | FVE | dead | CE recovered (mean) | alone, s |\n|---|---|---|---|---|---|\n")
    for member, took in zip(together, alone, strict=True):
        held, dead = member.summary["heldout"], member.summary["dead"]["share"]
        out(f"| {member.run.name} | {held['l0']:.1f} | {held['fve']:.3f} | {dead:.1%} "
            f"| {held['ce_recovered_mean']:.3f} | {took:.0f} |\n")
    out(f"\nOne stream: {seconds:.0f} s. Six trainings: {sum(alone):.0f} s, {sum(alone) / seconds:.2f} times as long. "
        f"Each member's files are byte-identical to those of the same config trained alone.\n")


if __name__ == "__main__":
    main()
