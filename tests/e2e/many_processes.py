"""Four processes make a cache, and then an index; now and then one of them is killed −9, and another takes its place.

    python -m tests.e2e.many_processes --kills 10 --seed 0

Every byte is compared with what one process makes by itself. Half of the kills come while the cache is made, half while
the index is; each comes at a random moment of the time that the undisturbed four take.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.kills import CONFIG, compare, ended

N_PROCESSES = 4
SHARD_ROWS = 256


def cache(root: Path) -> None:
    """Make the cache of a training and of its evaluation, as `sae cache make` does."""
    from training.activations.harvest import open_data, open_heldout
    from training.config.reading import resolve
    from training.display import Display

    config = resolve(_config(root))[0]
    data = open_data(config, config.site.hooks, Display(quiet=True))
    open_heldout(config, data, Display(quiet=True))


def index(root: Path) -> None:
    """Index the run that lies there."""
    from analysis.index import build

    build(root / "runs" / "run", quiet=True, shard_rows=SHARD_ROWS)


def _config(root: Path) -> dict:
    sections = {"cache": {"dir": str(root / "cache"), "shard_rows": SHARD_ROWS}, "train": {"budget": "1 epochs"}}
    return CONFIG | sections  # type: ignore[operator]


def trained(root: Path) -> None:
    """A run, and its cache."""
    from training.run import train

    train(_config(root), runs=root / "runs", quiet=True)


def child(work: Callable[[Path], None], root: Path) -> int:
    """A process of its own, in which nothing has run yet."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(root)
        os._exit(0)
    finally:
        os._exit(1)


def alone(work: Callable[[Path], None], root: Path) -> None:
    """One process, undisturbed."""
    assert os.waitpid(child(work, root), 0)[1] == 0, "the work failed by itself"


def together(work: Callable[[Path], None], root: Path, kill_after: float | None, rng: random.Random) -> bool:
    """Four processes; one is killed after so many seconds and another begun. Whether that was in time."""
    running = [child(work, root) for _ in range(N_PROCESSES)]
    killed = False
    if kill_after is not None:
        time.sleep(kill_after)
        victim = running.pop(rng.randrange(N_PROCESSES))
        if (status := ended(victim)) is None:
            os.kill(victim, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(victim, 0)[1])
            running.append(child(work, root))
        else:
            assert status == 0, "a process failed by itself"
    for pid in running:
        assert os.waitpid(pid, 0)[1] == 0, "a process failed beside one that was killed"
    return killed


def files(folder: Path) -> dict[str, bytes]:
    """Every file, apart from hidden ones (locks, notes of what was checked) and what a training keeps in a cache."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and "calibration" not in p.parts)
    paths = (p for p in found if not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def main(kills: int, seed: int) -> None:
    """Kill until there were enough, and compare after each."""
    import analysis.index.builder  # noqa: F401  (imported before forking, so that a process begins at once)
    import training.activations.harvest
    import training.model.load
    import training.run  # noqa: F401

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one"
        alone(trained, one)  # with a cache that one process made
        alone(index, one)
        for work, made, kept in ((cache, "cache", ""), (index, "runs/run/index", "runs")):
            expected, n_kills, n_late = files(one / made), 0, 0
            seconds = 0.0
            while n_kills < kills / 2:
                root = Path(folder) / "many"
                if kept:
                    shutil.copytree(one, root, ignore=shutil.ignore_patterns("index"))
                began = time.monotonic()
                moment = rng.uniform(0, seconds) if seconds else None
                killed = together(work, root, moment, rng)
                seconds = seconds or time.monotonic() - began
                n_kills, n_late = n_kills + killed, n_late + (moment is not None and not killed)
                compare(expected, files(root / made))
                shutil.rmtree(root)
            sys.stdout.write(
                f"{made}: {N_PROCESSES} processes ({seconds:.1f} s undisturbed), {n_kills} kills, {n_late} too late; "
                f"{len(expected)} files byte-identical to those of one process\n"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
