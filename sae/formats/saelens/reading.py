"""Read SAELens folders in inference or training form, version 6 or earlier."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sae.base import SAE, Transform
from sae.controller import Sparsity
from sae.errors import SaescopeError
from sae.formats.saelens.names import CONFIG, SCALER, WEIGHTS
from sae.io import files
from sae.variants.gated import Gated, GatedConfig
from sae.variants.imported import Imported, ImportedConfig, RowNorm
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from sae.variants.relu import ReLU, ReLUConfig
from sae.variants.steered import SteeredConfig
from sae.variants.topk import AbsTopKConfig, TopK, TopKConfig

_TENSORS = {
    "standard": (), "topk": (), "abstopk": (), "jumprelu": ("threshold",), "gated": ("b_gate", "b_mag", "r_mag"),
    "batchtopk": ("topk_threshold",), "matryoshka_batchtopk": ("topk_threshold",), "transcoder": (),
    "skip_transcoder": ("W_skip",), "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
}
"""Tensors of each architecture besides W_enc, W_dec, b_dec and (except gated) b_enc."""

_STEERED: dict[str, tuple[type[SAE], type[SteeredConfig]]] = {
    "standard": (ReLU, ReLUConfig), "jumprelu": (JumpReLU, JumpReLUConfig), "gated": (Gated, GatedConfig),
    "transcoder": (ReLU, ReLUConfig), "jumprelu_transcoder": (JumpReLU, JumpReLUConfig),
    "skip_transcoder": (ReLU, ReLUConfig), "jumprelu_skip_transcoder": (JumpReLU, JumpReLUConfig),
}
"""Architectures with a penalised variant here; the penalty's coefficient is not in the file."""

_NOT_READ = {
    "matching_pursuit": "it finds features one at a time, which no encoder matrix can express",
    "temporal": "it attends over the tokens of a sequence, and rows are independent here",
}


def read(folder: Path) -> SAE:
    """Read a SAELens folder, in inference or training form.

    Raises:
        SaescopeError: it is not a SAELens folder, is incomplete or inconsistent, or cannot be expressed here.
    """
    folder = Path(folder)
    found = files.read_json(folder / CONFIG)
    for key in ("metadata", "activation_fn_kwargs"):
        if not isinstance(found.get(key) or {}, dict):
            raise SaescopeError(f"{folder / CONFIG}: {key} is {found[key]!r}; expected a JSON object.")
    cfg = _modern(found)
    _refuse_unknown(folder, cfg)
    return of_tensors(folder, cfg, _checked(folder, cfg, files.read_tensors(folder / WEIGHTS)))


def of_tensors(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> SAE:
    """Build the SAE described by a SAELens 6 config and its fp64 tensors.

    Args:
        folder: folder that may contain a checkpoint's `activation_scaler.json`.
        cfg: contents of `cfg.json`.
        tensors: all tensors, of the right shapes.
    """
    sae = _empty(folder, cfg)
    places = sae.state_dict()
    for name, value in _expressed(type(sae), cfg, tensors).items():
        places[name].copy_(value)
    sae.provenance = {"source": "saelens", "cfg": cfg}
    return sae


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """Convert a config to the form of version 6; earlier ones were flat."""
    metadata = cfg.get("metadata")
    version = cfg.get("sae_lens_version") or (metadata or {}).get("sae_lens_version") or "0"
    major = str(version).split(".")[0]
    if major.isdigit() and int(major) >= 6:
        return cfg
    names = {
        "hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn",
    }
    cfg = {names.get(key, key): value for key, value in cfg.items() if key != "metadata"}
    cfg.setdefault("architecture", "standard")
    # the architecture came with version 4, and its k stayed where it was
    if cfg.get("activation_fn") == "topk" or cfg["architecture"] == "topk":
        kwargs = cfg.get("activation_fn_kwargs") or {}
        cfg |= {"architecture": "topk", "k": cfg.get("k") or kwargs.get("k")}
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    return cfg | {"metadata": {key: cfg[key] for key in ("hook_name", "hook_head_index", "model_name") if key in cfg}}


def _refuse_unknown(folder: Path, cfg: dict[str, Any]) -> None:
    path, architecture = folder / CONFIG, cfg.get("architecture")
    if not isinstance(architecture, str):
        raise SaescopeError(f"{path}: architecture is {architecture!r}; expected a name such as standard.")
    if architecture in _NOT_READ:
        raise SaescopeError(f"{path}: the architecture {architecture} cannot be read: {_NOT_READ[architecture]}.")
    if architecture not in _TENSORS:
        raise SaescopeError(f"{path}: unknown architecture {architecture!r}; supported: {', '.join(_TENSORS)}.")
    counts = ["d_in", "d_sae"] + ["k"] * (architecture in ("topk", "abstopk")) + ["d_out"] * ("coder" in architecture)
    for key in counts:
        if type(cfg.get(key)) is not int or cfg[key] <= 0:
            raise SaescopeError(f"{path}: {key} is {cfg.get(key)!r}; expected a positive whole number.")
    if "k" in counts and cfg["k"] > cfg["d_sae"]:
        raise SaescopeError(f"{path}: k = {cfg['k']} exceeds d_sae = {cfg['d_sae']}.")
    norm = cfg.get("normalize_activations") or "none"
    if norm == "covariance_whitening":
        raise SaescopeError(
            f"{path}: normalize_activations is covariance_whitening, so this is a training checkpoint whose whitening "
            "is not folded into the weights yet; use the final SAE that SAELens saved."
        )
    if norm not in ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale"):
        raise SaescopeError(f"{path}: unknown normalize_activations {norm!r}.")


def _checked(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check that all tensors are there, have the right shapes and are finite; return them in fp64."""
    path, n, d_in, d_out = folder / WEIGHTS, cfg["d_sae"], cfg["d_in"], _d_out(cfg)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    scaling = _scaling(path, cfg, tensors)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_dec": (d_out,)}
    if cfg["architecture"] != "gated":
        shapes["b_enc"] = (n,)
    special: dict[str, tuple[int, ...]] = {"topk_threshold": (), "W_skip": (d_out, d_in)}
    shapes |= {name: special.get(name, (n,)) for name in _TENSORS[cfg["architecture"]]}
    if set(shapes) != set(tensors):
        raise SaescopeError(
            f"{path}: a SAELens {cfg['architecture']} has the tensors {', '.join(sorted(shapes))}; found "
            f"{', '.join(sorted(tensors)) or 'none'}."
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise SaescopeError(
                f"{path}: {name} has shape {list(tensors[name].shape)}; {CONFIG} requires {list(shape)}."
            )
        if not bool(tensors[name].isfinite().all()):
            raise SaescopeError(f"{path}: {name} contains NaN or infinite values; this SAE cannot be used.")
    return {name: tensor.double() for name, tensor in tensors.items()} | scaling


def _scaling(path: Path, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pop the fine-tuning scale of each feature from the tensors, in fp64; empty if all are 1."""
    named = [tensors.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    if not named or bool((named[0] == 1).all()):
        return {}
    if not cfg.get("finetuning_scaling_factor"):
        raise SaescopeError(
            f"{path}: scaling_factor is not 1, but {CONFIG} does not set finetuning_scaling_factor; SAELens refuses this "
            f"too: set it to true, or remove the tensor."
        )
    if tuple(named[0].shape) != (cfg["d_sae"],) or not bool(named[0].isfinite().all()):
        raise SaescopeError(f"{path}: scaling_factor is not one finite number for each of {cfg['d_sae']} features.")
    return {"scaling_factor": named[0].double()}


def _empty(folder: Path, cfg: dict[str, Any]) -> SAE:
    """An SAE of the right class, without its weights."""
    architecture, norm = cfg["architecture"], cfg.get("normalize_activations") or "none"
    averaged = norm == "expected_average_only_in"
    row_norm = "none" if averaged else cast(RowNorm, norm)
    plain = row_norm == "none"
    transform = _average_norm(folder, cfg["d_in"]) if averaged else Transform.identity(cfg["d_in"])
    cross = "transcoder" in architecture
    common = {
        "d_sae": cfg["d_sae"], "apply_b_dec_to_input": not cross and cfg.get("apply_b_dec_to_input", True),
        "skip": "skip" in architecture,
    }
    target = Transform.identity(_d_out(cfg)) if cross else Transform(transform.mean, transform.scale)
    places = {"d_in": cfg["d_in"], "d_out": _d_out(cfg), "input": transform, "target": target}
    if plain and architecture == "topk":
        return TopK(TopKConfig(k=cfg["k"], **common), **places)
    if plain and architecture == "abstopk":
        return TopK(AbsTopKConfig(k=cfg["k"], **common), **places)
    if plain and architecture in _STEERED:
        sae_class, config_class = _STEERED[architecture]
        return sae_class(config_class(sparsity=Sparsity(coefficient=1), **common), **places)
    config = ImportedConfig(
        architecture=architecture, k=cfg["k"] if architecture in ("topk", "abstopk") else None,
        absolute=architecture == "abstopk", row_norm=row_norm, denormalise=not cross, **common,
    )
    return Imported(config, **places)


def _average_norm(folder: Path, d_in: int) -> Transform:
    """The scale stored beside a checkpoint's weights; in a final SAE it is folded in."""
    if (folder / SCALER).exists():
        factor = files.read_json(folder / SCALER).get("scaling_factor")
        if isinstance(factor, int | float):
            return Transform(torch.zeros(d_in), torch.tensor(float(factor)))
    warnings.warn(
        f"{folder / CONFIG}: normalize_activations is expected_average_only_in and no {SCALER} gives the factor; the "
        "weights are assumed to be for raw activations, as SAELens itself does.",
        stacklevel=2,
    )
    return Transform.identity(d_in)


def _expressed(sae_class: type[SAE], cfg: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """SAELens' tensors as parameters and buffers of the class `_empty` chose, in fp64."""
    architecture, n = cfg["architecture"], cfg["d_sae"]
    tensors = dict(tensors)
    if architecture == "gated" and sae_class is Gated:
        tensors["b_enc"] = tensors.pop("b_gate")
    elif architecture == "gated":
        ratio = tensors.pop("r_mag").exp()
        tensors["W_enc"] = tensors["W_enc"] * ratio
        tensors["b_enc"] = tensors.pop("b_mag")
        tensors["threshold"] = tensors["b_enc"] - tensors.pop("b_gate") * ratio
    # only checkpoints of the top-k family rank by scaled values: the default for them, but not for final SAEs
    if "topk" in architecture and cfg.get("rescale_acts_by_decoder_norm", "decoder_init_norm" in cfg):
        norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
        tensors |= {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms}
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if "scaling_factor" in tensors:
        # applied between encoder and decoder, so it does not change which features are active
        tensors["W_dec"] = tensors["W_dec"] * tensors.pop("scaling_factor")[:, None]
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").expand(n)
    if "threshold" in tensors:
        # relu comes first, so a negative threshold acts like zero
        tensors["threshold"] = tensors["threshold"].clamp_min(0)
    if sae_class is JumpReLU:
        tensors["theta"] = tensors.pop("threshold") / JumpReLUConfig.model_fields["threshold_lr"].default
    return tensors


def _d_out(cfg: dict[str, Any]) -> int:
    return int(cfg["d_out"]) if "transcoder" in cfg["architecture"] else int(cfg["d_in"])
