"""A new run that goes on where another one's last checkpoint stands: under its own name, for longer if it likes.

    runs/NAME/going_on.json     which run it went on from, after how many steps and of which budget

Its learning rate is that of its own budget from there on, as for any training: with the same budget the two end alike bit
for bit; with a longer one it rises again from what the old one's fall had come to.
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

FILE = "going_on.json"
OF_TRAIN = ("budget", "checkpoint_every", "log_every", "wandb", "device", "shards", "patience")
"""Keys of `train` in which it may differ, as in its name, `eval`, `cache` and `data.prefetch`."""


@contextlib.contextmanager
def going_on(from_run: str | Path, member: Config, folder: Path) -> Iterator[None]:
    """While open, the last checkpoint of `from_run` lies in `folder`, and stays if a run has come of it.

    Raises:
        SaescopeError: there is no such run or checkpoint, one of a sweep, or a config that differs in more.
    """
    run = user_path(from_run)
    there = configs.read(run / "config.yaml")[0]
    if (other := first_difference(_comparable(there, member), member.plain())) is not None:
        raise SaescopeError(
            f"{run} was trained with another config ({other}); what goes on from it may have another name, eval, cache, "
            f"data.prefetch and train.{', train.'.join(OF_TRAIN)}."
        )
    saved = Checkpoints(run / "checkpoints", {}).finished()
    if not saved or len(read_json(saved[-1] / "state.json").get("members", ())) != 1:
        raise SaescopeError(f"{run} has no checkpoint of its own to go on from; members of a sweep share theirs.")
    place = folder / "checkpoints" / saved[-1].name
    n_steps = int(saved[-1].name.removeprefix("step-"))
    try:
        with atomic_dir(place) as part:
            shutil.copytree(saved[-1], part, dirs_exist_ok=True)
        write_bytes(folder / "metrics.jsonl", (run / "metrics.jsonl").read_bytes())
        write_json(folder / FILE, {"run": there.name, "n_steps": n_steps, "budget": str(there.train.budget)})
        yield
    finally:
        if not (folder / "config.yaml").exists():  # the name stays free
            for left in (place.parent, folder / "metrics.jsonl", folder / FILE):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def facts(folder: Path | None) -> dict[str, Any]:
    """For a summary: what a run went on from; nothing for one that began anew."""
    found = folder is not None and (folder / FILE).exists()
    return {"going_on": read_json(folder / FILE)} if found and folder is not None else {}


def _comparable(there: Config, member: Config) -> dict[str, Any]:
    """The other run's config with what may differ taken from the new one's."""
    train = there.train.model_copy(update={key: getattr(member.train, key) for key in OF_TRAIN})
    data = there.data.model_copy(update={"prefetch": member.data.prefetch})
    changes = {"name": member.name, "eval": member.eval, "cache": member.cache, "train": train, "data": data}
    return there.model_copy(update=changes).plain()
