"""Kill −9 a training at random moments, resume it, and compare every byte with an undisturbed one.

    python -m tests.e2e.kills --kills 20 --seed 0

After each kill the same command is given again with --resume. Checkpoints are written several times a second, beside the
training; half of the kills come while one is being written.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "name": "run",
    "model": {"name": "native:tiny", "batch_seqs": 4},
    "corpus": {"sources": {"source": f"text:{argparse.__file__}", "split": "blank-line"}, "n_ctx": 32,
               "n_tokens": 20_000, "held_out": 0.2},
    "cache": {"shard_rows": 1024},
    "site": "blocks.1.hook_resid_post",
    "data": {"batch_rows": 128, "superblock_rows": 4096},
    "sae": {"variant": "batchtopk", "d_sae": 2048, "k": 8},
    "train": {"budget": "4 epochs", "checkpoint_every": "0.3 s", "dead_window": "2000 tokens"},
    "eval": {"n_rows": 500, "n_tokens": 200},
}
STAGES = ("before", "caching", "training", "writing")
WANTED = ("caching", "writing", "training", "writing")
WRITING_S = 0.03
"""About how long a checkpoint takes."""


def run(root: Path) -> None:
    """One attempt, from wherever the last one was killed."""
    from training.run import train

    config = CONFIG | {"cache": CONFIG["cache"] | {"dir": str(root / "cache")}}  # type: ignore[operator]
    train(config, runs=root / "runs", resume=True, quiet=True)


def attempt(root: Path) -> int:
    """A child of its own for an attempt: the libraries are already imported here, and nothing has run yet."""
    child = os.fork()
    if child:
        return child
    try:
        run(root)
        os._exit(0)
    finally:
        os._exit(1)


def artefacts(root: Path) -> dict[str, bytes]:
    """Every byte that must not depend on a kill: the cache, the weights in all forms, the last checkpoint, the metrics.

    When the other checkpoints are taken, and how fast the training was, is a matter of the clock.
    """
    found = [p for p in (root / "cache").rglob("*") if p.is_file() and not p.name.startswith(".")]
    folder = root / "runs" / "run"
    found += [*folder.glob("final/*"), folder / "cfg.json", folder / "sae_weights.safetensors"]
    found += sorted(folder.glob("checkpoints/step-*"))[-1].iterdir()
    metrics = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    lines = [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in metrics]
    of_files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(found)}
    return of_files | {"metrics": json.dumps(lines, sort_keys=True).encode()}


def whole(root: Path) -> dict[str, float]:
    """An undisturbed attempt: the seconds it spends in each stage."""
    child, seconds, began = attempt(root), dict.fromkeys(STAGES, 0.0), time.monotonic()
    while (status := ended(child)) is None:
        seconds[stage(root)] = time.monotonic() - began - sum(v for k, v in seconds.items() if k != stage(root))
        time.sleep(0.01)
    assert status == 0 and (root / "runs" / "run" / "summary.json").exists(), "an attempt failed by itself"
    return seconds


def kill(root: Path, wanted: str, seconds: float, rng: random.Random) -> str:
    """Begin an attempt, kill it so many seconds into a stage, or into training and then in the midst of the next
    checkpoint, and say which stage that was."""
    left, child, status = partials(root), attempt(root), None
    while stage(root, left) != ("training" if wanted == "writing" else wanted) and (status := ended(child)) is None:
        time.sleep(0.002)
    if status is None:
        time.sleep(seconds)
    while wanted == "writing" and stage(root, left) != wanted and (status := ended(child)) is None:
        time.sleep(0.001)
    if status is None:
        time.sleep(rng.uniform(0, WRITING_S) if wanted == "writing" else 0)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "a resumed attempt failed"
    return stage(root, left) if os.WIFSIGNALED(status) else "finished"


def ended(child: int) -> int | None:
    """How a child ended, told once: it is gone afterwards. None while it goes on."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return status if pid else None


def main(kills: int, seed: int) -> None:
    """Lives of four kills, one in each of WANTED, each then run to its end and compared."""
    import training.activations.cache
    import training.loggers
    import training.model.load
    import training.run  # noqa: F401  (imported before forking, so that an attempt begins at once)

    rng, hits = random.Random(seed), dict.fromkeys((*STAGES, "finished"), 0)
    with tempfile.TemporaryDirectory() as folder:
        # the first attempt compiles the kernels, which none of the killed ones has to do
        whole(Path(folder) / "warm-up")
        seconds = whole(Path(folder) / "undisturbed")
        expected = artefacts(Path(folder) / "undisturbed")
        root = Path(folder) / "disturbed"

        def delay(wanted: str) -> float:
            return rng.uniform(0, 0.5 * seconds["caching" if wanted == "caching" else "training"])

        for i in range(kills):
            wanted = WANTED[i % 4]
            while (hit := kill(root, wanted, delay(wanted), rng)) != wanted:
                # too late, or just before or after a checkpoint: once more, in another life if this one is past the stage
                hits[hit] += 1
                if hit == "finished" or wanted == "caching":
                    shutil.rmtree(root)
            hits[hit] += 1
            if i % 4 == 3 or i == kills - 1:
                whole(root)
                compare(expected, artefacts(root))
                shutil.rmtree(root)
    sys.stdout.write(f"{kills} kills ({hits}), {len(expected)} files byte-identical to the undisturbed ones\n")


def stage(root: Path, left: frozenset[Path] = frozenset()) -> str:
    """What a kill interrupted, or would; partial checkpoints that were `left` by others before do not count."""
    if partials(root) - left:
        return "writing"
    if list(root.glob("cache/*/acts/*/manifest.json")):
        return "training"
    return "caching" if list(root.glob("cache/*/manifest.json")) else "before"


def partials(root: Path) -> frozenset[Path]:
    """Checkpoints in the making, and what kills left of some."""
    return frozenset(root.glob("runs/run/checkpoints/.step-*.partial"))


def compare(expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    """Raise with the names of files that differ."""
    different = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    assert not different, f"differ after kills: {sorted(different)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
