"""Open a circuit's SAEs and their model: find runs by name or glob, and check that they belong to one model."""

from collections.abc import Sequence
from pathlib import Path

from analysis.circuits.graph import SiteInfo, site_names
from analysis.circuits.model import CircuitModel
from analysis.trained import TrainedSAE, kept_model, open_trained
from sae.errors import SaescopeError
from sae.io.paths import user_path
from sae.store import weights_hash
from training.corpus.files import matching
from training.model.language_model import Model


def open_saes(runs: Sequence[str]) -> list[TrainedSAE]:
    """Open the SAEs of runs.

    Args:
        runs: see `run_folders`.

    Raises:
        SaescopeError: a folder isn't a run, a glob finds none, or two SAEs write to the same hook.
    """
    trained = [open_trained(folder) for folder in run_folders(runs)]
    by_hook: dict[str, TrainedSAE] = {}
    for one in trained:
        other = by_hook.setdefault(one.site.output, one)
        if other is not one:
            raise SaescopeError(
                f"saes: {other.folder} and {one.folder} both write to {one.site.output}; a circuit has one SAE per hook."
            )
    return trained


def run_folders(runs: Sequence[str]) -> list[Path]:
    """The folders of runs, each once.

    Args:
        runs: folders of runs or of sweeps, or globs (`runs/circuit-saes/*`). Of sweeps and globs, only finished runs count.
            A glob expanded by the shell may include a sweep's `checkpoints`, which is skipped.

    Raises:
        SaescopeError: a glob finds no finished run.
    """
    found: list[Path] = []
    for run in runs:
        path = user_path(run)
        if path.exists() or not any(c in run for c in "*?["):
            single = (path / "config.yaml").is_file() or (path / "final").is_dir()
            found += [path] if single else sorted(final.parent for final in path.glob("*/final")) or [path]
            continue
        finished = [folder for folder in matching(path) if (folder / "final").is_dir()]
        if not finished:
            raise SaescopeError(f"saes: there is no finished run at {run}; train some first, or name other folders.")
        found += finished
    parents = {folder.parent for folder in found if folder.name != "checkpoints"}
    return [f for f in dict.fromkeys(found) if f.name != "checkpoints" or f.parent not in parents]


def open_model(
    trained: Sequence[TrainedSAE], name: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> Model:
    """Load the language model the SAEs were trained on.

    Args:
        trained: the SAEs.
        name: model to load instead of the one recorded in the SAEs; its weights must be the same.
        device: device.
        dtype: compute dtype; it needn't match the dtype the SAEs were trained with.

    Raises:
        SaescopeError: the SAEs belong to different models, or the model can't be loaded.
    """
    if not trained and name is None:
        raise SaescopeError("saes: neither an SAE nor a model is given.")
    name = name or str(trained[0].model_facts()[0]["name"])
    model = kept_model(name, device, dtype)
    for one in trained:
        one.check_model(model)
    return model


def circuit_model(trained: Sequence[TrainedSAE], model: Model) -> tuple[CircuitModel, tuple[SiteInfo, ...]]:
    """The model with the SAEs at their sites, and the sites' records for the circuit.

    Raises:
        SaescopeError: the model lacks a hook, or widths don't match.
    """
    spliced = CircuitModel(model, {one.site: one.sae for one in trained})
    by_site = {one.site: one for one in trained}
    names = site_names(spliced.sites)
    return spliced, tuple(_info(name, by_site[site]) for name, site in zip(names, spliced.sites, strict=True))


def _info(name: str, one: TrainedSAE) -> SiteInfo:
    return SiteInfo(
        name=name, site=one.site, sae=weights_hash(one.sae), d_sae=one.sae.d_sae,
        variant=one.sae.config.variant, run=str(one.folder), skip=one.sae.has_offsets,
    )
