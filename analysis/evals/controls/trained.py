"""Trained controls, one set per site and shape, stored as runs next to the others: RUNS/controls-HASH/NAME.

    frozen-decoder   a TopK SAE whose decoder stays at its random initial directions               (2602.14111)
    frozen-encoder   a TopK SAE whose encoder does
    random-model     a TopK SAE at the same site of the model with random weights, `random:NAME:SEED`  (2501.17727)

Model, corpus, budget, learning rate, number of features and L0 are the run's. The variant is always TopK, or AbsTopK if the
run's codes are signed, so that runs of one site and shape share the controls. Weights and row order have their own seed.
HASH covers everything that determines the controls.
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
"""File with the controls' training time in seconds, in their folder."""
_FROZEN = {"frozen-decoder": ["W_dec"], "frozen-encoder": ["W_enc"]}


def plan(trained: TrainedSAE, seed: int = 0) -> dict[str, Config]:
    """Training configs of a run's controls, by name; `random-model` only if there is a model.

    Raises:
        SaescopeError: the run has no config, or its rows were passed from Python.
    """
    config = trained.config
    if config.corpus.sources[0].source == TENSORS:
        raise SaescopeError(
            f"{trained.folder.name} was trained on rows passed from Python that aren't on disk, so no control can be "
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
    """Finished controls of a run, by name."""
    try:
        planned = plan(trained, seed)
    except SaescopeError:
        return {}
    folders = {name: root_of(trained) / config.name for name, config in planned.items()}
    return {name: folder for name, folder in folders.items() if (folder / "summary.json").is_file()}


def make(trained: TrainedSAE, seed: int = 0, display: Display | None = None) -> dict[str, Path]:
    """Train (or resume) a run's missing controls, and return all of them.

    Raises:
        SaescopeError: as `plan`, or an error in training.
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
    """Recorded training time of some controls, in seconds; None if there is none."""
    places = {folder.parent for folder in folders.values()}
    found = [read_json(place / TIMES) for place in places if (place / TIMES).is_file()]
    known = [number(one.get("seconds")) for one in found]
    return sum(value for value in known if value is not None) if known else None


def root_of(trained: TrainedSAE) -> Path:
    """The folder of runs that contains a run."""
    folder = trained.folder.resolve()
    try:
        parts = trained.config.name.split("/")
    except SaescopeError:
        return folder.parent
    return folder.parents[len(parts) - 1] if list(folder.parts[-len(parts) :]) == parts else folder.parent


def _caches(trained: TrainedSAE) -> str:
    """The cache folder in the run's config, resolved from any working directory."""
    given = trained.config.cache.dir
    beside = [parent / given for parent in trained.folder.resolve().parents[1:3]]
    places = [place for place in beside if place.is_dir()]
    return given if user_path(given).is_dir() or not places else str(places[0])


def _active(trained: TrainedSAE) -> int:
    """The run's configured number of active features per row, or else its measured L0."""
    config = trained.config.sae
    if isinstance(config, CountConfig):
        return config.k
    asked = getattr(getattr(config, "sparsity", None), "target_l0", None) or getattr(config, "k", None)
    if asked is None:
        summary = trained.folder / "summary.json"
        asked = number(read_json(summary).get("heldout", {}).get("l0")) if summary.is_file() else None
    if asked is None:
        raise SaescopeError(f"{trained.folder.name}: its L0 is unknown (there is no summary.json).")
    return max(1, round(asked))


def _digest(fields: dict[str, Any]) -> str:
    """Hash of everything that determines the controls' weights."""
    parts = {key: fields[key] for key in ("model", "corpus", "site", "data", "optim", "sae")}
    parts["train"] = {key: fields["train"][key] for key in ("budget", "dead_window", "precision")}
    parts["rows"] = fields["cache"]["dtype"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def _resolved(fields: dict[str, Any]) -> Config:
    (config,) = resolve(fields)
    return config


def _note_time(group: Path, names: list[str], took: float) -> None:
    """Add to a group's recorded training time."""
    path = group / TIMES
    before: dict[str, Any] = read_json(path) if path.is_file() else {"seconds": 0.0, "controls": []}
    write_json(path, {"seconds": before["seconds"] + took, "controls": [*before["controls"], *names]})
