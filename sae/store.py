"""Saving and loading. `final/` holds `sae.safetensors` (parameters and input transform by name) and `sae.json`.

The saved form has unit decoder rows, so an activation is a norm in the model's own units. It has no timestamps: equal
SAEs give equal bytes, and saving a loaded SAE reproduces its bytes. `load` reads this form, a run folder that has it in
`final/`, SAELens folders (`sae.formats.saelens`) and Gemma Scope folders (`sae.formats.gemma_scope`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sae.base import SAE, SAEConfig
from sae.devices import resolve_device
from sae.errors import SaescopeError
from sae.formats import gemma_scope, saelens
from sae.io import files
from sae.io.paths import user_path
from sae.kernels import backend
from sae.torch_state import own_torch_state
from sae.variants import READABLE

FORMAT = "saescope-sae"
FORMAT_VERSION = 1
WEIGHTS, MANIFEST = "sae.safetensors", "sae.json"


def save(sae: SAE, folder: Path, *, provenance: dict[str, Any]) -> str:
    """Write an SAE to `folder`, replacing any SAE there, and return its weights hash. The SAE itself is not modified.

    Args:
        sae: any variant, on any device.
        folder: the folder for the two files; it is written atomically.
        provenance: what the SAE was made from (site, model, corpus, ...), as JSON types; `load` restores it.

    Raises:
        SaescopeError: decoder norms cannot be folded without changing which features are active, the disk is full, or
            the folder contains something else.
    """
    folder = Path(folder)
    if folder.exists() and files.format_of(folder / MANIFEST) != FORMAT and (not folder.is_dir() or any(folder.iterdir())):
        raise SaescopeError(f"{folder} contains something other than a saved SAE; choose another folder, or remove it.")
    unit = unit_copy(sae)
    tensors = dict(unit.tensors())
    digest = tensors_hash(tensors)
    manifest = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "code_version": files.code_version(),
        "config": sae.config.model_dump(mode="json", by_alias=True),
        "d_in": sae.d_in, "d_out": sae.d_out, "d_sae": sae.d_sae,
        "tensors": {name: {"dtype": _dtype(t), "shape": list(t.shape)} for name, t in tensors.items()},
        "weights_sha256": digest, "provenance": provenance,
    }
    with files.atomic_dir(folder) as partial:
        files.write_tensors(partial / WEIGHTS, tensors, {"format": FORMAT})
        files.write_json(partial / MANIFEST, manifest)
    return digest


@own_torch_state()
def load(path: str | Path, device: str | torch.device = "cpu", kernels: str = "auto") -> SAE:
    """Load an SAE from a run folder, its `final/`, or a SAELens or Gemma Scope folder; see `sae.provenance` for its origin.

    Raises:
        SaescopeError: there is no SAE, or it has an unknown format, is incomplete, modified or inconsistent; or the
            device is not available.
    """
    path, device = user_path(path), resolve_device(device)
    operations = backend(device, kernels)
    if (path / "final").is_dir():
        sae = _read(path / "final")
    elif (path / MANIFEST).exists() or (path / WEIGHTS).exists():
        sae = _read(path)
    elif (path / saelens.CONFIG).exists():
        sae = saelens.read(path)
    elif (path / gemma_scope.PARAMS).exists():
        sae = gemma_scope.read(path)
    else:
        raise SaescopeError(f"{path}: {_nothing_there(path)}")
    sae = sae.to(device)
    sae.kernels = operations
    return sae


def weights_hash(sae: SAE) -> str:
    """Hash that identifies these weights: sha256 of all tensors in their saved form."""
    return tensors_hash(dict(unit_copy(sae).tensors()))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {_dtype(tensor)} {list(tensor.shape)}\n".encode())
        digest.update(files.tensor_bytes(tensor))
    return digest.hexdigest()


def unit_copy(sae: SAE) -> SAE:
    """A copy on the CPU with unit decoder rows.

    Raises:
        SaescopeError: folding the norms would change which features are active.
    """
    if reason := saelens.unfoldable(sae):
        raise SaescopeError(f"This SAE cannot be saved with unit decoder rows: {reason}.")
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in sae.state_dict().items()}
    return _build(type(sae), sae.config, sae.d_in, sae.d_out, tensors).folded().normalised()


def _read(folder: Path) -> SAE:
    manifest = files.read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise SaescopeError(
            f"{folder / MANIFEST}: the format is {manifest.get('format')!r}, not {FORMAT!r}; give the folder of a run."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise SaescopeError(
            f"{folder / MANIFEST}: format version {manifest.get('format_version')!r} cannot be read, only version "
            f"{FORMAT_VERSION}; load it with saescope {manifest.get('code_version')}, which wrote it."
        )
    sae_class, config = _config(folder / MANIFEST, manifest)
    tensors = files.read_tensors(folder / WEIGHTS)
    try:
        sae = _build(sae_class, config, int(manifest["d_in"]), int(manifest["d_out"]), tensors)
        expected, provenance = manifest["weights_sha256"], manifest["provenance"]
    except KeyError as error:
        raise SaescopeError(f"{folder / MANIFEST}: the entry {error} is missing; save the SAE again.") from error
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SaescopeError(f"{folder / WEIGHTS}: does not match {MANIFEST} in the same folder ({reason}).") from error
    if tensors_hash(tensors) != expected:
        raise SaescopeError(
            f"{folder / WEIGHTS}: the weights' sha256 differs from the one in {MANIFEST}, so one of the two files was "
            "modified; restore both or train again."
        )
    sae.provenance = provenance
    return sae


def _config(path: Path, manifest: dict[str, Any]) -> tuple[type[SAE], SAEConfig]:
    """The class and config that a manifest names."""
    fields = manifest.get("config")
    variant = fields.get("variant") if isinstance(fields, dict) else None
    if not isinstance(variant, str) or variant not in READABLE:
        raise SaescopeError(f"{path}: no variant called {variant!r}; this code has {', '.join(READABLE)}.")
    try:
        return READABLE[variant][0], READABLE[variant][1].model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise SaescopeError(f"{path}: config.{where} cannot be used: {problem['msg']}.") from error


def _build(
    sae_class: type[SAE], config: SAEConfig, d_in: int, d_out: int, tensors: Mapping[str, Tensor]
) -> SAE:
    """Build an SAE from these tensors, in their own dtypes."""
    sae = sae_class(config, d_in, d_out)
    tensors = dict(tensors)
    for name in ("gain", "b_in"):
        setattr(sae, name, tensors.get(name))
    for name, transform in (("input", sae.input), ("target", sae.target)):
        transform.whiten = tensors.get(f"{name}.whiten")
    sae.input.unit_rows = config.transform.unit_rows
    if "W_enc" in tensors:
        # feature-major in memory: see sae.kernels
        tensors["W_enc"] = tensors["W_enc"].t().contiguous().t()
    sae.load_state_dict(tensors, assign=True)
    return sae


def _nothing_there(path: Path) -> str:
    if not path.exists():
        return "there is no such folder; give a run folder or a SAELens folder."
    if (path / "config.yaml").exists():
        return "this run has no final/ yet; let training finish (sae train ... --resume), then load it."
    return (
        f"no SAE found here: there is no final/, no {MANIFEST}, no {saelens.CONFIG} (SAELens) and no "
        f"{gemma_scope.PARAMS} (Gemma Scope)."
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
