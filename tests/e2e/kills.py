"""Kill −9 a training at random moments, resume it, and compare every byte with an undisturbed one.

    python -m tests.e2e.kills --kills 20 --seed 0

A kill hits the cache or the training, whichever is under way; after each the same command is given again with
--resume. A training that ends before its kill comes is compared too, then begun anew from nothing.
"""

import argparse
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
    "model": {"name": "native:tiny", "batch_seqs": 8},
    "corpus": {"sources": {"source": f"text:{argparse.__file__}", "split": "blank-line"}, "n_ctx": 32,
               "n_tokens": 40_000, "held_out": 0.2},
    "cache": {"shard_rows": 1024},
    "site": "blocks.1.hook_resid_post",
    "data": {"batch_rows": 128, "superblock_rows": 4096},
    "sae": {"variant": "batchtopk", "d_sae": 256, "k": 8},
    "train": {"budget": "3 epochs", "checkpoint_every": "10 steps", "dead_window": "2000 tokens"},
    "eval": {"n_rows": 500, "n_tokens": 200},
}


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
    """Every byte that must not depend on a kill: the cache, the weights in all forms, the checkpoints' tensors."""
    found = [p for p in (root / "cache").rglob("*") if p.is_file() and not p.name.startswith(".")]
    folder = root / "runs" / "run"
    found += [*folder.glob("final/*"), folder / "cfg.json", folder / "sae_weights.safetensors"]
    found += folder.glob("checkpoints/*/*.safetensors")
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(found)}


def whole(root: Path) -> float:
    """Seconds an undisturbed attempt takes."""
    began = time.monotonic()
    _, status = os.waitpid(attempt(root), 0)
    assert status == 0, "the attempt failed by itself"
    return time.monotonic() - began


def main(kills: int, seed: int) -> int:
    """Returns how many kills hit a cache or a training under way; raises if any byte differs."""
    import training.cache
    import training.loggers
    import training.models
    import training.run  # noqa: F401  (imported before forking, so that an attempt begins at once)

    rng, where = random.Random(seed), {"before": 0, "caching": 0, "training": 0}
    with tempfile.TemporaryDirectory() as folder:
        seconds = whole(Path(folder) / "undisturbed")
        expected = artefacts(Path(folder) / "undisturbed")
        root = Path(folder) / "disturbed"
        while sum(where.values()) < kills:
            child = attempt(root)
            time.sleep(rng.uniform(0.3 * seconds, seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                where[stage(root)] += 1
                continue
            assert status == 0, "a resumed attempt failed"
            compare(expected, artefacts(root))
            shutil.rmtree(root)
        whole(root)
        compare(expected, artefacts(root))
    sys.stdout.write(f"{kills} kills ({where}), {len(expected)} files byte-identical to the undisturbed ones\n")
    return where["caching"] + where["training"]


def stage(root: Path) -> str:
    """What a kill interrupted."""
    if list(root.glob("cache/*/acts/*/manifest.json")):
        return "training"
    return "caching" if list(root.glob("cache/*/manifest.json")) else "before"


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
