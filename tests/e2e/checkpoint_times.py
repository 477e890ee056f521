"""What checkpoints beside a training cost it: stretches with one each, and stretches without, taking turns.

    python -m tests.e2e.checkpoint_times [--out FILE] [--shape ROWS,D_IN,D_SAE,K] [--seconds 60] [--pairs 5]

Both kinds of stretch are of one training, in one process. A stretch's speed is told by the clock, which other work on the
machine disturbs, and by the CPU seconds of the whole process, which it disturbs less. Least disturbed are the CPU seconds
of a checkpoint by itself: training loses at most that share of one core, and on several a part of it.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.base import Transform
from sae.io.files import write_json
from training.activations.batches import FIRST
from training.activations.calibration import Calibration
from training.bench.setup import Setup, Shape, machine
from training.checkpoint import Checkpoints
from training.config.reading import resolve
from training.saver import Saver
from training.schedule import Clock
from training.trainer import Trainer, new_sae


class Stretch(NamedTuple):
    """How fast it was, and of one with a checkpoint the seconds until training went on and until it was written."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    waited_s: float = 0.0
    written_s: float = 0.0


def trainer(shape: Shape, rows: torch.Tensor) -> Trainer:
    """A TopK SAE in training."""
    config = resolve({
        "name": "checkpoints", "model": None, "corpus": "tensors", "site": "acts", "data": {"batch_rows": shape.n_rows},
        "sae": {"variant": "topk", "d_sae": shape.d_sae, "k": shape.k}, "train": {"budget": "1M steps", "device": "cpu"},
    })[0]
    same = Transform.identity(shape.d_in)
    sae = new_sae(config, Calibration(same, Transform.identity(shape.d_in), rows, rows))
    return Trainer(config, sae, Clock.of(config.train.budget, batch_rows=shape.n_rows, epoch_rows=0), torch.device("cpu"))


def stretch(one: Trainer, batches: Iterator[dict[str, torch.Tensor]], seconds: float, saver: Saver | None) -> Stretch:
    """Train for so long, with a checkpoint at the beginning if there is a saver."""
    first, cpu, began = one.n_steps, time.process_time(), time.perf_counter()

    def passed() -> float:
        return time.perf_counter() - began

    if saver is not None:
        saver.save(FIRST)
    waited, written = passed(), 0.0
    while passed() < seconds:
        one.step(next(batches))
        if saver is not None and saver.free and not written:
            written = passed()
    rows = (one.n_steps - first) * one.clock.batch_rows
    assert saver is None or written, "the checkpoint took longer than the stretch"
    return Stretch(rows / passed(), rows / (time.process_time() - cpu), waited, written)


def measure(shape: Shape, seconds: float, pairs: int, seed: int = 0) -> dict[str, Any]:
    """Stretches with and without, pair by pair, and the share of the speed that is lost."""
    setup = Setup.make(shape, n_batches=4)
    one, batches = trainer(shape, setup.batches[0]), cycle([{"acts": rows} for rows in setup.batches])
    draw = random.Random(seed)
    found: dict[str, list[Stretch]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder, Saver(Checkpoints(Path(folder), {}), [one], print) as saver:
        for _ in range(3):  # compiles, and touches the snapshot's memory
            one.step(next(batches))
            saver.save(FIRST)
        alone = [_cpu_seconds(saver) for _ in range(5)]
        for _ in range(pairs):
            for kind in draw.sample(["with", "without"], 2):
                found[kind].append(stretch(one, batches, seconds, saver if kind == "with" else None))
    return {
        "shape": shape._asdict(), "state_bytes": sum(tensor.nbytes for tensor in one.tensors().values()),
        "checkpoint_every_s": seconds, "cpu_s_of_a_checkpoint": alone,
        "with": [one._asdict() for one in found["with"]], "without": [one._asdict() for one in found["without"]],
        "lost": {key: _lost(found, key) for key in ("tokens_per_s", "tokens_per_cpu_s")},
    }


def _cpu_seconds(saver: Saver) -> float:
    """Of one checkpoint, its threads' included, while nothing else is done."""
    began = time.process_time()
    saver.save(FIRST)
    while not saver.free:
        time.sleep(0.01)
    return time.process_time() - began


def _lost(found: dict[str, list[Stretch]], key: str) -> dict[str, float]:
    """The share of the speed that is lost: median over pairs, least and most."""
    pairs = zip(found["with"], found["without"], strict=True)
    lost = [1 - getattr(saved, key) / getattr(plain, key) for saved, plain in pairs]
    return {"median": statistics.median(lost), "least": min(lost), "most": max(lost)}


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", metavar="ROWS,D_IN,D_SAE,K", help="repeatable")
    parser.add_argument("--seconds", type=float, default=60.0, help="between two checkpoints (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="of stretches (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    shapes = [Shape(*map(int, text.split(","))) for text in args.shape or ("1024,576,4608,32", "2048,768,16384,32")]
    figures = {"machine": machine(), "sizes": [measure(shape, args.seconds, args.pairs) for shape in shapes]}
    for size in figures["sizes"]:
        for key, lost in size["lost"].items():
            spread = f"{lost['least']:.2%} to {lost['most']:.2%}"
            sys.stdout.write(f"{size['shape']}: {lost['median']:.2%} of {key} lost ({spread})\n")
        alone = statistics.median(size["cpu_s_of_a_checkpoint"])
        sys.stdout.write(f"    {alone:.3f} CPU seconds each, {alone / args.seconds:.2%} of one core\n")
        for key in ("waited_s", "written_s"):
            sys.stdout.write(f"    {key} {statistics.median(one[key] for one in size['with']):.3f}\n")
    if args.out is not None:
        write_json(args.out, figures)


if __name__ == "__main__":
    main()
