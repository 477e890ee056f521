"""Kill −9 one of several ranks at random moments; torchrun begins them anew, and they go on from the last checkpoint.

    python -m tests.e2e.rank_kills --kills 10 --seed 0

Two lives: on 2 ranks that share the features the end is byte-identical to that of an undisturbed training; one that 4 ranks
began (2 of features, 2 of rows) and whose death 2 ranks take over agrees with it to rounding.
"""

import argparse
import atexit
import contextlib
import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import sae
from tests.training.distributed.launched import ROOT, command, environment, metrics, write_rows

CONFIG: dict[str, Any] = {
    "name": "run", "model": None, "site": "acts",
    "corpus": {"held_out": 0.1, "n_ctx": 32},
    "data": {"batch_rows": 512, "superblock_rows": 16_384},
    "sae": {"variant": "batchtopk", "d_sae": 1536, "k": 8},
    "train": {"budget": "400 steps", "device": "cpu", "dead_window": "5000 tokens", "log_every": "10 steps",
              "checkpoint_every": "0.5 s", "precision": "fp32"},
    "eval": {"n_rows": 1000, "every": "50%"},
}


@functools.cache
def rows() -> str:
    """What is trained on, on the disk until the end."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return write_rows(Path(folder), 60_000, 64)


def with_rows(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its source."""
    return config | {"corpus": config["corpus"] | {"sources": rows()}}


class Launch:
    """torchrun of a training, and its ranks."""

    def __init__(self, root: Path, n: int, shards: int, *arguments: str, restarts: int = 0) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.run, config = root / "run", root / "config.yaml"
        config.write_text(json.dumps(with_rows(CONFIG)))
        line = command(n, "sae.cli", "train", str(config), f"train.shards={shards}", "--runs", str(root), "--quiet",
                       *arguments, restarts=restarts)
        self.n, self.process = n, subprocess.Popen(line, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def ranks(self) -> list[psutil.Process]:
        """Its processes that run now."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile, or a zombie
                if "sae.cli" in child.cmdline():
                    found.append(child)
        return found

    def kill_one(self, rng: random.Random, known: set[int]) -> str:
        """Kill one some time after all of them have begun, none of the `known` ones; how far it was by then."""
        while self.process.poll() is None and len(new := [r for r in self.ranks() if r.pid not in known]) < self.n:
            time.sleep(0.05)
        known |= {rank.pid for rank in new}
        steps = done(self.run)
        if rng.random() < 0.8:  # most in training, some while they begin
            while self.process.poll() is None and done(self.run) == steps:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 2))
        else:
            time.sleep(rng.uniform(0, 4))
        assert self.process.poll() is None, "it was at its end before it could be killed"
        rng.choice(new).send_signal(signal.SIGKILL)
        return f"after step {done(self.run)}"

    def end(self) -> tuple[int, str]:
        """Its code, and what it said."""
        _, said = self.process.communicate(timeout=600)
        return self.process.returncode, said


def done(run: Path) -> int:
    """Steps up to the last line of the log."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def artefacts(run: Path) -> dict[str, bytes]:
    """Every byte that must not depend on a kill."""
    found = [*run.glob("final/*"), *sorted(run.glob("checkpoints/step-*"))[-1].glob("*.safetensors")]
    return {file.name: file.read_bytes() for file in found} | {"metrics": json.dumps(metrics(run), sort_keys=True).encode()}


def sentences(said: str) -> list[str]:
    """What the ranks themselves have said."""
    return [line for line in said.splitlines() if line.startswith(("sae:", "sae train:"))]


def as_many(root: Path, kills: int, rng: random.Random) -> None:
    """Killed on 2 ranks, and restarted by torchrun each time."""
    code, said = Launch(root / "whole", 2, 2).end()
    assert code == 0, said
    killed, known = Launch(root / "killed", 2, 2, restarts=kills), set[int]()
    for i in range(kills):
        tell(f"kill {i + 1} {killed.kill_one(rng, known)}")
    code, said = killed.end()
    assert code == 0, said
    expected, found = artefacts(root / "whole" / "run"), artefacts(killed.run)
    different = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    assert not different, f"differ after kills: {sorted(different)}"
    tell("\n".join([f"{kills} kills, {len(expected)} files byte-identical; the ranks said:", *sentences(said)]))


def fewer(root: Path, rng: random.Random) -> None:
    """Killed on 4 ranks, gone on with on 2."""
    code, said = Launch(root / "four", 4, 2).end()
    assert code == 0, said
    begun = Launch(root / "fewer", 4, 2)
    while done(begun.run) < 100:
        time.sleep(0.05)
    rng.choice(begun.ranks()).send_signal(signal.SIGKILL)
    code, said = begun.end()
    assert code != 0 and len(sentences(said)) == 1, said
    killed_at, saved = done(begun.run), sorted(begun.run.glob("checkpoints/step-*"))
    assert saved, "there was nothing to go on from"
    code, said = Launch(root / "fewer", 2, 2, "--resume").end()
    assert code == 0, said
    pairs = list(zip(metrics(root / "four" / "run"), metrics(begun.run), strict=True))
    worst = max(abs(a["loss/reconstruction"] / b["loss/reconstruction"] - 1) for a, b in pairs if "l0" in a)
    a, b = (sae.load(root / name / "run") for name in ("four", "fewer"))
    turned = float(torch.nn.functional.cosine_similarity(a.W_dec.detach(), b.W_dec.detach()).min())
    tell(f"4 ranks, killed after step {killed_at}, then 2 from {saved[-1].name}: losses within {worst:.1e}, cosines of "
         f"decoder rows {turned:.6f} at least")


def tell(line: str) -> None:
    """At once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(kills: int, seed: int) -> None:
    """Both lives."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        if kills:
            as_many(Path(folder), kills, rng)
        fewer(Path(folder), rng)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
