"""The SAEs of a circuit: runs found by name or pattern, checked to belong to one model; short names of their sites."""

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
    """The SAEs of runs.

    Args:
        runs: folders, or patterns of them (`runs/circuit-saes/*`), each of which passes over what is no finished run.

    Raises:
        SaescopeError: a folder is no run, a pattern finds none, or two SAEs write at one hook.
    """
    folders: list[Path] = []
    for run in runs:
        path = user_path(run)
        found = [path]
        if not path.exists() and any(c in run for c in "*?["):
            found = [folder for folder in matching(path) if (folder / "final").is_dir()]
            if not found:
                raise SaescopeError(f"saes: no finished run is at {run}; train some first, or name other folders.")
        folders += [folder for folder in found if folder not in folders]
    trained = [open_trained(folder) for folder in folders]
    by_hook: dict[str, TrainedSAE] = {}
    for one in trained:
        other = by_hook.setdefault(one.site.output, one)
        if other is not one:
            raise SaescopeError(
                f"saes: {other.folder} and {one.folder} both write at {one.site.output}; a circuit has one SAE at a hook."
            )
    return trained


def open_model(
    trained: Sequence[TrainedSAE], name: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> Model:
    """The language model behind SAEs.

    Args:
        trained: the SAEs.
        name: what to load instead of what they name themselves; it has to have the same weights.
        device: where it runs.
        dtype: what it computes in, whatever the SAEs were trained from.

    Raises:
        SaescopeError: the SAEs are of different models, or the model cannot be had.
    """
    if not trained and name is None:
        raise SaescopeError("saes: none is named, and no model either.")
    name = name or str(trained[0].model_facts()[0]["name"])
    model = kept_model(name, device, dtype)
    for one in trained:
        one.check_model(model)
    return model


def circuit_model(trained: Sequence[TrainedSAE], model: Model) -> tuple[CircuitModel, tuple[SiteInfo, ...]]:
    """The model with the SAEs at their sites, and what a circuit says of them.

    Raises:
        SaescopeError: a hook that this model does not have, or widths that do not fit.
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
