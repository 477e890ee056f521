"""Controls that are trained, once for a site and shape, and lie beside the runs as runs: RUNS/controls-HASH/NAME.

    frozen-decoder   a TopK SAE whose decoder stays the random directions it began with          (2602.14111)
    frozen-encoder   one whose encoder does
    random-model     one of the same site of the model with random weights, `random:NAME:SEED`     (2501.17727)

Model, corpus, budget and learning rate are the run's, and so are the number of features and how many are active; the
variant is TopK, or AbsTopK where the run's codes are signed, whatever the run's is. So runs of one site and shape share
them. Weights and order of rows follow a seed of their own. HASH is of all that determines them.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from analysis.runs import number
from analysis.trained import TrainedSAE
from sae.errors import SaescopeError
from sae.io.files import read_json, write_json
from sae.io.paths import user_path
from sae.variants.topk import CountConfig
from training.config.reading import merged, resolve
from training.config.schema import Config
from training.config.text_source import TENSORS
from training.display import Display
from training.run import sweep, train

CONTROLS = ("frozen-decoder", "frozen-encoder", "random-model")
TIMES = "times.json"
"""What each control took to train, in seconds; beside them."""
_FROZEN = {"frozen-decoder": ["W_dec"], "frozen-encoder": ["W_enc"]}


def plan(trained: TrainedSAE, seed: int = 0) -> dict[str, Config]:
    """The trainings of a run's controls, by name; `random-model` only where there is a model.

    Raises:
        SaescopeError: the run has no config, or rows that were given in Python.
    """
    config = trained.config
    if config.corpus.sources[0].source == TENSORS:
        raise SaescopeError(
            f"{trained.folder.name} was trained on rows that were given in Python and are on no disk, so no control can be "
            "trained on them."
        )
    signed, k = bool(trained.sae.select().absolute), _active(trained)
    sae = {
        "variant": "abstopk" if signed else "topk", "d_sae": trained.sae.d_sae, "k": min(k, trained.sae.d_sae),
        "seed": seed, "apply_b_dec_to_input": config.sae.apply_b_dec_to_input,
    }
    fields = {**config.plain(), "sae": sae}
    fields["data"] = {**fields["data"], "seed": seed}
    fields["optim"] = {**fields["optim"], "sparse": False, "frozen": []}
    fields["train"] = {**fields["train"], "fused_adam": False, "wandb": None}
    fields["cache"] = {**fields["cache"], "dir": _caches(trained)}
    group = f"controls-{_digest(fields)}"
    plans = {name: merged(fields, {"optim": {"frozen": frozen}}) for name, frozen in _FROZEN.items()}
    if config.model is not None and config.corpus.needs_model and not config.model.name.startswith("random:"):
        plans["random-model"] = merged(
            fields, {"model": {"name": f"random:{config.model.name}:{seed}"}, "cache": {"name": None}})
    return {name: _resolved({**one, "name": f"{group}/{name}"}) for name, one in plans.items()}


def find(trained: TrainedSAE, seed: int = 0) -> dict[str, Path]:
    """The finished controls of a run, by name."""
    try:
        planned = plan(trained, seed)
    except SaescopeError:
        return {}
    folders = {name: root_of(trained) / config.name for name, config in planned.items()}
    return {name: folder for name, folder in folders.items() if (folder / "summary.json").is_file()}


def make(trained: TrainedSAE, seed: int = 0, display: Display | None = None) -> dict[str, Path]:
    """Train the controls of a run that are not there yet, or go on with them; all of them afterwards.

    Raises:
        SaescopeError: as `plan`, or whatever a training raises.
    """
    display, planned, root = display or Display(quiet=True), plan(trained, seed), root_of(trained)
    there = find(trained, seed)
    lacking = {name: config for name, config in planned.items() if name not in there}
    together = [config for name, config in lacking.items() if name in _FROZEN]
    for configs in filter(None, (together, [c for name, c in lacking.items() if name not in _FROZEN])):
        names = [config.name.partition("/")[2] for config in configs]
        display.say(f"training controls: {', '.join(names)}")
        began = time.monotonic()
        if len(configs) > 1:
            sweep(configs, runs=root, resume=True, quiet=display.console.quiet)
        else:
            train(configs[0], runs=root, resume=True, display=display)
        _note_time(root / configs[0].name.partition("/")[0], names, time.monotonic() - began)
    return find(trained, seed)


def seconds(folders: dict[str, Path]) -> float | None:
    """What it took to train some controls, as far as it was noted."""
    places = {folder.parent for folder in folders.values()}
    found = [read_json(place / TIMES) for place in places if (place / TIMES).is_file()]
    known = [number(one.get("seconds")) for one in found]
    return sum(value for value in known if value is not None) if known else None


def root_of(trained: TrainedSAE) -> Path:
    """The folder of all runs that a run lies in."""
    folder = trained.folder.resolve()
    try:
        parts = trained.config.name.split("/")
    except SaescopeError:
        return folder.parent
    return folder.parents[len(parts) - 1] if list(folder.parts[-len(parts) :]) == parts else folder.parent


def _caches(trained: TrainedSAE) -> str:
    """The folder of caches that the run's config names, found from wherever this is called."""
    given = trained.config.cache.dir
    beside = [parent / given for parent in trained.folder.resolve().parents[1:3]]
    places = [place for place in beside if place.is_dir()]
    return given if user_path(given).is_dir() or not places else str(places[0])


def _active(trained: TrainedSAE) -> int:
    """How many features the run was asked to have active in a row, or has."""
    config = trained.config.sae
    if isinstance(config, CountConfig):
        return config.k
    asked = getattr(getattr(config, "sparsity", None), "target_l0", None) or getattr(config, "k", None)
    if asked is None:
        summary = trained.folder / "summary.json"
        asked = number(read_json(summary).get("heldout", {}).get("l0")) if summary.is_file() else None
    if asked is None:
        raise SaescopeError(f"{trained.folder.name} does not say how many features are active in a row (no summary.json).")
    return max(1, round(asked))


def _digest(fields: dict[str, Any]) -> str:
    """Of what determines the controls' weights."""
    parts = {key: fields[key] for key in ("model", "corpus", "site", "data", "optim", "sae")}
    parts["train"] = {key: fields["train"][key] for key in ("budget", "dead_window", "precision")}
    parts["rows"] = fields["cache"]["dtype"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def _resolved(fields: dict[str, Any]) -> Config:
    (config,) = resolve(fields)
    return config


def _note_time(group: Path, names: list[str], took: float) -> None:
    """Add to what the controls of a group took."""
    path = group / TIMES
    before: dict[str, Any] = read_json(path) if path.is_file() else {"seconds": 0.0, "controls": []}
    write_json(path, {"seconds": before["seconds"] + took, "controls": [*before["controls"], *names]})
