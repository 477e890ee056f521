"""Open an SAE to import, from SAELens or Gemma Scope, with the model and site that its files name.

A path is a local folder, or `hub:ORG/NAME/SUB/FOLDER[@REVISION]`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.formats import gemma_scope, saelens
from sae.io.paths import user_path
from training.model import hub
from training.model.load import official_name
from training.model.packaged import PACKAGED, sha256_of
from training.site import Site

_FILES = (saelens.CONFIG, saelens.WEIGHTS, saelens.SCALER, gemma_scope.PARAMS)
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_COPIES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "gemma3-270m": "google/gemma-3-270m"}
"""Packaged (quantised) models and the hub names of the originals."""


@dataclass(frozen=True)
class ImportSource:
    """An SAE to import, with what is known about it."""

    sae: SAE
    format: str
    """`saelens` or `gemma-scope`."""
    place: str
    """Its source: the folder's name, or the hub address with the commit."""
    files: dict[str, str]
    """sha256 of every file read, by name."""
    cfg: dict[str, Any]
    """SAELens's config; empty for Gemma Scope."""
    model: str | None
    """The model named in its files, in the form `load_model` takes; None if they name none."""
    site: Site | None
    """The hooks named in its files; None if they name none."""
    hint: str
    """Options guessed from the path, if it says more than the files; else empty."""
    name: str
    """Default name of the run."""

    @property
    def transcoder(self) -> bool:
        """Whether it needs a target that differs from its input."""
        return self.sae.d_in != self.sae.d_out or "transcoder" in str(self.cfg.get("architecture"))


def open_source(path: str) -> ImportSource:
    """Read the SAE at a path.

    Raises:
        SaescopeError: nothing there, an unsupported format, or only a pickle.
    """
    folder, place = _folder(path)
    present = {name: folder / name for name in _FILES if (folder / name).is_file()}
    if saelens.CONFIG in present:
        form, reader = "saelens", saelens.read
        present.pop(gemma_scope.PARAMS, None)
    elif gemma_scope.PARAMS in present:
        form, reader = "gemma-scope", gemma_scope.read
        present = {gemma_scope.PARAMS: present[gemma_scope.PARAMS]}
        if "embedding" in folder.parts[-4:]:
            raise SaescopeError(
                f"{path}: an SAE on Gemma's embeddings before scaling by √d_model, for which there is no hook; choose an "
                "SAE on a block."
            )
    else:
        raise SaescopeError(f"{path}: {_nothing_to_import(folder)}")
    sae = reader(folder)
    cfg = sae.provenance.get("cfg", {})
    guess = gemma_scope.guess(path) if form == "gemma-scope" else gemma_scope.Guess(None, None, None)
    hint = " ".join(f"--{option} {value}" for option, value in guess._asdict().items() if value)
    files = {name: sha256_of([file]) for name, file in sorted(present.items())}
    return ImportSource(sae, form, place, files, cfg, _model(cfg), _site(cfg), hint, _name(path, form))


def decide(source: ImportSource, path: str, model: str | None, hook: str | None, target: str | None) -> tuple[str, Site]:
    """Choose model and site: the given ones, or else those named in the files.

    Raises:
        SaescopeError: neither names one, or they disagree.
    """
    if model and source.model and not _same_model(model, source.model):
        raise SaescopeError(
            f"{path}: --model {model} is not the model in its {saelens.CONFIG}, {source.model}; remove --model, or import "
            "an SAE of that model."
        )
    known = source.site
    for option, asked, there in (
        ("hook", hook, known and known.input), ("target", target, known and known.target),
    ):
        if asked and there and asked != there:
            raise SaescopeError(
                f"{path}: --{option} {asked} is not the hook in its {saelens.CONFIG}, {there}; remove --{option}, or "
                "import an SAE of that hook."
            )
    model = model or source.model
    if known is not None:
        hook, target = hook or known.input, target or known.target
    try_ = f"; its path looks like {source.hint}" if source.hint else ""
    for option, value in (("model", model), ("hook", hook)):
        if not value:
            raise SaescopeError(f"{path}: its files don't name the {option}; add --{option}{try_}.")
    if source.transcoder and not target:
        raise SaescopeError(f"{path}: a transcoder, but its files don't name the output hook; add --target{try_}.")
    if target and target != hook and source.format == "saelens" and not source.transcoder:
        raise SaescopeError(
            f"{path}: --target {target}, but according to its {saelens.CONFIG} this is an SAE "
            f"({source.cfg.get('architecture')}), which reconstructs its input, {hook}; remove --target."
        )
    return str(model), Site(input=str(hook), target=target)


def _folder(path: str) -> tuple[Path, str]:
    """The folder with the files, and the name of the source to record."""
    if not path.startswith("hub:"):
        folder = user_path(path)
        if not folder.is_dir():
            why = "it is a file; give its folder" if folder.exists() else "there is no such folder; give another one"
            raise SaescopeError(f"{path}: {why}, or hub:ORG/NAME/FOLDER.")
        return folder, folder.resolve().name
    address, _, revision = path.removeprefix("hub:").partition("@")
    parts = address.strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise SaescopeError(f"{path} is not a folder on the hub; use hub:ORG/NAME/FOLDER or hub:ORG/NAME/FOLDER@REVISION.")
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    folder, commit = hub.folder(repo, inside, revision or None, _FILES)
    return folder, f"hub:{repo}{f'/{inside}' if inside else ''}@{commit}"


def _nothing_to_import(folder: Path) -> str:
    """Why a folder cannot be imported."""
    if (folder / store.MANIFEST).exists() or (folder / "final").is_dir():
        return "this already is a Saescope run; index it with `sae index`."
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES):
        return (
            f"{pickles[0]} is a pickle, which can run arbitrary code and is never opened; save the SAE in SAELens format "
            f"({saelens.CONFIG} and {saelens.WEIGHTS})."
        )
    inside = sorted(file.parent for name in (saelens.CONFIG, gemma_scope.PARAMS) for file in folder.glob(f"*/{name}"))
    below = f"; its subfolders with one: {', '.join(place.name for place in inside[:5])}" if inside else ""
    return f"no SAE here: found neither SAELens's {saelens.CONFIG} nor Gemma Scope's {gemma_scope.PARAMS}{below}."


def _model(cfg: dict[str, Any]) -> str | None:
    """The model named in a SAELens config, in the form `load_model` takes."""
    name = (cfg.get("metadata") or {}).get("model_name")
    if not isinstance(name, str) or name in ("", "unknown", "none"):
        return None
    if name in PACKAGED or name.partition(":")[0] in ("hub", "local", "native"):
        return name
    return f"hub:{official_name(name)}"


def _site(cfg: dict[str, Any]) -> Site | None:
    """The hooks named in a SAELens config; a head is appended to its hook as `[h]`."""
    metadata = cfg.get("metadata") or {}
    names: list[str | None] = []
    for suffix in ("", "_out"):
        name, head = metadata.get(f"hook_name{suffix}"), metadata.get(f"hook_head_index{suffix}")
        names.append(f"{name}[{head}]" if name and head is not None else name or None)
    hook, target = names
    return Site(input=hook, target=None if target == hook else target) if hook else None


def _same_model(asked: str, there: str) -> bool:
    """Whether two names may refer to the same model; a local folder can hold any model."""
    if asked.startswith("local:") or there.startswith("local:"):
        return True

    def plain(name: str) -> str:
        return _COPIES.get(name, name.removeprefix("hub:").partition("@")[0])

    return official_name(plain(asked)) == official_name(plain(there))


def _name(path: str, form: str) -> str:
    """A run name derived from the end of a path."""
    if path.startswith("hub:"):
        parts = path.removeprefix("hub:").partition("@")[0].strip("/").split("/")[1:]
    else:
        resolved = user_path(path).resolve().parts
        start = next((i for i, part in enumerate(resolved) if re.fullmatch(r"layer_\d+", part)), len(resolved) - 1)
        parts = list(resolved[start:] if form == "gemma-scope" else resolved[-1:])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.") or "imported"
