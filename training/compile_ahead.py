"""Compile the numba loops in a separate process, while the model loads and fills the cache.

numba compiles a loop on its first call and caches it on disk; on a new machine that takes half a minute for all loops of a
training run. The process takes a few small steps of the same training on random rows.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sae.base import Transform
from sae.kernels import Backend
from training.activations.calibration import Calibration
from training.config.reading import resolve
from training.config.schema import Config
from training.schedule import Clock
from training.trainer import Trainer, new_sae

N_ROWS = 256
N_STEPS = 24


@contextmanager
def compiling(members: Sequence[Config], backend: Backend) -> Iterator[None]:
    """Compile the loops these runs need in the background, if none are compiled yet; on exit, wait for the process.

    If the process fails, the training compiles what is missing.
    """
    if backend.name != "cpu" or not _is_new():
        yield
        return
    command = [sys.executable, "-m", "training.compile_ahead"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps([one.plain() for one in members]).encode())
            process.stdin.close()
            yield
        except BaseException:
            process.kill()
            raise


def _is_new() -> bool:
    """Whether numba has a cache folder without compiled loops."""
    from sae.kernels.cpu.loops import decode_rows

    folder = decode_rows.stats.cache_path  # type: ignore[attr-defined]
    return folder is not None and not any(Path(folder).glob("*.nbi"))


def take_steps(config: Config) -> None:
    """Take a few steps with a smaller SAE of the same kind, the last ones with dead features, then encode and decode."""
    torch.set_num_threads(1)
    d_sae = max(512, min(config.sae.d_sae, 2048))
    small = config.model_copy(update={
        "sae": config.sae.model_copy(update={"d_sae": d_sae}), "train": config.train.model_copy(update={"device": "cpu"}),
    })
    rows = torch.randn(N_ROWS, 64)
    same = Transform.identity(64)
    clock = Clock(N_STEPS * N_ROWS, N_ROWS, N_STEPS * N_ROWS)
    trainer = Trainer(small, new_sae(small, Calibration(same, same, rows, rows)), clock, torch.device("cpu"))
    for _ in range(N_STEPS):
        trainer.step(dict.fromkeys(small.site.hooks, rows))
    with torch.no_grad():
        trainer.sae.decode(trainer.sae.encode(rows))


if __name__ == "__main__":
    for plain in json.load(sys.stdin):
        take_steps(resolve(plain)[0])
