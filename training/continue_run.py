"""Start a new run from another run's last checkpoint, under its own name and possibly with a longer budget.

    runs/NAME/continued_from.json     the run it was started from, its step and its budget

The learning rate follows the schedule of the new budget: with the same budget both runs end bit for bit alike; with a
longer one the rate jumps back up from where the old run's decay had brought it.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError
from sae.io.files import atomic_dir, read_json, write_bytes, write_json
from sae.io.paths import user_path
from training.checkpoint import Checkpoints
from training.config import reading as configs
from training.config.schema import Config
from training.provenance import first_difference

FILE = "continued_from.json"
OF_TRAIN = ("budget", "checkpoint_every", "log_every", "wandb", "device", "shards", "patience")
"""Keys of `train` that may differ from the old run, besides name, `eval`, `cache` and `data.prefetch`."""


@contextlib.contextmanager
def continued_from(from_run: str | Path, member: Config, folder: Path) -> Iterator[None]:
    """Context in which `folder` holds a copy of the last checkpoint of `from_run`; removed if no run was started.

    Raises:
        SaescopeError: no such run or checkpoint, a checkpoint of a sweep, or a config that differs in other keys.
    """
    run = user_path(from_run)
    there = configs.read(run / "config.yaml")[0]
    if (other := first_difference(_comparable(there, member), member.plain())) is not None:
        raise SaescopeError(
            f"{run} was trained with a different config ({other}); with --from only these may change: name, eval, cache, "
            f"data.prefetch, train.{', train.'.join(OF_TRAIN)}."
        )
    saved = Checkpoints(run / "checkpoints", {}).finished()
    if not saved or len(read_json(saved[-1] / "state.json").get("members", ())) != 1:
        raise SaescopeError(f"{run} has no checkpoint of its own to start from; members of a sweep share checkpoints.")
    place = folder / "checkpoints" / saved[-1].name
    n_steps = int(saved[-1].name.removeprefix("step-"))
    try:
        with atomic_dir(place) as part:
            shutil.copytree(saved[-1], part, dirs_exist_ok=True)
        write_bytes(folder / "metrics.jsonl", (run / "metrics.jsonl").read_bytes())
        write_json(folder / FILE, {"run": there.name, "n_steps": n_steps, "budget": str(there.train.budget)})
        yield
    finally:
        if not (folder / "config.yaml").exists():  # nothing was trained: free the name
            for left in (place.parent, folder / "metrics.jsonl", folder / FILE):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def facts(folder: Path | None) -> dict[str, Any]:
    """Summary entries on the run it was started from; empty if there is none."""
    found = folder is not None and (folder / FILE).exists()
    return {"continued_from": read_json(folder / FILE)} if found and folder is not None else {}


def _comparable(there: Config, member: Config) -> dict[str, Any]:
    """The old run's config with the keys that may differ taken from the new one."""
    train = there.train.model_copy(update={key: getattr(member.train, key) for key in OF_TRAIN})
    data = there.data.model_copy(update={"prefetch": member.data.prefetch})
    changes = {"name": member.name, "eval": member.eval, "cache": member.cache, "train": train, "data": data}
    return there.model_copy(update=changes).plain()
