"""The format of SAELens 6: writing a folder that its `SAE.load_from_disk` opens, and reading any of its folders.

    h = ((norm(x) − b_dec · [apply_b_dec_to_input]) W_enc + b_enc        x̂ = denorm(f W_dec + b_dec)
    standard f = relu(h)     jumprelu f = relu(h) [h > θ]     topk f = relu(topk(h))     abstopk f = h on topk(|h|)
    gated    f = [g + b_gate > 0] relu(g exp(r_mag) + b_mag)  with g = norm(x) W_enc: a jumprelu over W_enc exp(r_mag)
             with θ = max(0, b_mag − b_gate exp(r_mag)), which is how it is read where rows are normalised one by one

Transcoders never subtract b_dec and never undo norm; skip transcoders add W_skip x. Training checkpoints differ in
what is folded: `topk_threshold`, `activation_scaler.json`, decoder norms. What reconstructs the update of a block from
its input is written as a skip transcoder of the block's output, whose skip path passes the input on.

Written files hold everything in the model's units: decoder rows have unit norm, no normalisation is left to do.
"""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae import files
from sae.base import SAE, Progress, SAEConfig, SteeredConfig, Step, Transform
from sae.code import OffsetCode, SparseCode
from sae.controller import Sparsity
from sae.errors import SaescopeError
from sae.kernels import Select
from sae.units import Count
from sae.variants.abstopk import AbsTopK, AbsTopKConfig
from sae.variants.gated import Gated, GatedConfig
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from sae.variants.relu import ReLU, ReLUConfig
from sae.variants.topk import TopK, TopKVariantConfig

WEIGHTS, CONFIG, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
SAELENS_VERSION = "6.54.12"
"""The version whose format is written. Without it in the metadata SAELens takes a file for one of before 6.0 and drops
the metadata."""

RowNorm = Literal["none", "layer_norm", "constant_norm_rescale"]


# -- what SAELens knows and no variant here does ----------------------------------------------------------------------


class ImportedConfig(SAEConfig):
    """Config of an SAE that was read from SAELens and has no variant here."""

    variant: Literal["imported"] = "imported"
    architecture: str
    """SAELens' name of it."""
    k: Count | None = Field(default=None, gt=0)
    """The k largest of each row are active; null: those above their threshold."""
    absolute: bool = False
    """Rank by |pre| and keep the sign (abstopk)."""
    row_norm: RowNorm = "none"
    """How each row is normalised by its own statistics before encoding, and denormalised after decoding."""
    denormalise: bool = True
    """False for transcoders, whose output is not in the input's units."""


@final
class Imported(SAE):
    """An SAE of SAELens for inference, or to start a training from."""

    config: ImportedConfig
    unit_norm_decoder: ClassVar[bool] = False
    threshold: Tensor

    def __init__(
        self, config: ImportedConfig, d_in: int, d_out: int | None = None,
        *, input: Transform | None = None, target: Transform | None = None,
    ) -> None:
        super().__init__(config, d_in, d_out, input=input, target=target)
        if config.k is None:
            self.register_buffer("threshold", torch.zeros(self.d_sae))

    @property
    def has_offsets(self) -> bool:
        """Rows are decoded around points of their own."""
        return self.config.skip or (self.config.row_norm != "none" and self.config.denormalise)

    def select(self) -> Select:
        """The k largest, or those above their threshold."""
        if self.config.k is None:
            return Select("threshold", threshold=self.threshold)
        return Select("topk", k=self.config.k, absolute=self.config.absolute)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """As for any SAE; where rows have offsets, the code carries them to `decode`."""
        inner, spread, centre = row_statistics(x.to(self.W_enc.dtype), self.config.row_norm)
        code = self.active(inner)
        if not self.has_offsets:
            return code
        offset = self.bias().expand(len(x), -1)
        if self.config.row_norm != "none" and self.config.denormalise:
            offset = offset * spread + centre
            code = replace(code, value=code.value * spread[code.rows(), 0])
        return OffsetCode.around(code, offset + self.bypass(x) if self.config.skip else offset)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Not defined.

        Raises:
            SaescopeError: always.
        """
        del x, target, progress
        raise SaescopeError(
            f"A {self.config.architecture} read from SAELens has no loss here; train a variant with init.from instead."
        )

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Thresholds live in units of the activation."""
        if self.config.k is None:
            self.threshold.mul_(norms)

    def unfit_as_start(self) -> str | None:
        """Weights that only work with rows normalised one by one."""
        if self.config.row_norm != "none":
            return (
                f"it is a {self.config.architecture} of SAELens with normalize_activations {self.config.row_norm}, "
                "parts of which no variant here has"
            )
        return None


def row_statistics(
    x: Float[Tensor, "n_rows d"], kind: RowNorm
) -> tuple[Float[Tensor, "n_rows d"], Float[Tensor, "n_rows 1"], Float[Tensor, "n_rows 1"]]:
    """Rows normalised each by itself as SAELens does, and what undoes it: x ≈ row · spread + centre.

    layer_norm: by mean and unbiased standard deviation (plus 1e-5, which is not undone). constant_norm_rescale: to
    norm √d.
    """
    zero, one = x.new_zeros(x.shape[0], 1), x.new_ones(x.shape[0], 1)
    if kind == "layer_norm":
        centre = x.mean(1, keepdim=True)
        spread = (x - centre).std(1, keepdim=True)
        return (x - centre) / (spread + 1e-5), spread, centre
    if kind == "constant_norm_rescale":
        gain = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)
        return x * gain, 1 / gain, zero
    return x, one, zero


def unfoldable(sae: SAE) -> str | None:
    """Why decoder norms cannot be folded into the encoder without changing which features are active, if so."""
    norms = sae.W_dec.detach().norm(dim=1)
    if bool(((norms - 1).abs() <= 1e-4).all()):
        return None
    select = sae.select()
    scalar = not isinstance(select.threshold, Tensor) or select.threshold.ndim == 0
    if select.mode == "threshold" and (not scalar or float(select.threshold) == 0):
        return None
    return (
        f"its rows have norms from {float(norms.min()):.4g} to {float(norms.max()):.4g}, and its active features are "
        "chosen by comparing activations that folding these norms would scale"
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def export(sae: SAE, folder: Path, *, metadata: dict[str, Any]) -> str | None:
    """Write `cfg.json` and `sae_weights.safetensors` for SAELens 6.54 into `folder`.

    BatchTopK becomes `jumprelu` with its threshold repeated, the form SAELens itself saves.

    Args:
        sae: any variant.
        folder: the run's folder.
        metadata: SAELens' metadata: hook_name, hook_name_out, hook_head_index, model_name, model_class_name,
            context_size, prepend_bos, dataset_path, seqpos_slice, ... `hook_z[3]` names one head; `hook_z` alone
            marks activations with a head axis, which SAELens flattens.

    Returns:
        None, or the reason why SAELens has no form for this SAE; nothing is written then.
    """
    hook, update = metadata.get("hook_name"), (metadata.get("site") or {}).get("update", False)
    if update == "both":
        return "its input is the difference of two hooks, and an SAE of SAELens reads one"
    cross = sae.d_in != sae.d_out or (metadata.get("hook_name_out") or hook) != hook or sae.config.skip
    skips = sae.config.skip or bool(update)
    metadata = _with_heads(metadata)
    architecture, reason = _architecture(sae, cross, skips)
    if reason is None and (reason := unfoldable(sae)) is not None:
        reason = f"SAELens' form has unit decoder rows: {reason}"
    if reason is not None:
        return reason
    cfg = {
        "architecture": architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not cross, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAELENS_VERSION, "saescope_version": files.code_version()} | metadata,
    }
    if cross:
        cfg["d_out"] = sae.d_out
    elif str(metadata.get("hook_name")).endswith("hook_z") and metadata.get("hook_head_index") is None:
        cfg["reshape_activations"] = "hook_z"
    if architecture in ("topk", "abstopk"):
        cfg |= {"k": sae.select().k, "rescale_acts_by_decoder_norm": False}
    tensors = folded(sae, subtracts_b_dec=not cross)
    if update:
        # the block's output is its input and the update
        tensors["W_skip"] = tensors.get("W_skip", torch.zeros(sae.d_out, sae.d_in)) + torch.eye(sae.d_in)
    if architecture == "gated":
        tensors |= _gate(tensors, cast(Gated, sae).r_mag.detach().cpu())
        del tensors["b_enc"]
    if "jumprelu" not in architecture:
        del tensors["threshold"]
    files.write_tensors(Path(folder) / WEIGHTS, tensors)
    files.write_json(Path(folder) / CONFIG, cfg)
    return None


def _gate(tensors: dict[str, Tensor], r_mag: Float[Tensor, " d_sae"]) -> dict[str, Tensor]:
    """The gate whose magnitudes have this encoder and open above this threshold."""
    shrunk = (-r_mag.double()).exp()
    b_gate = (tensors["b_enc"].double() - tensors["threshold"].double()) * shrunk
    return {
        "W_enc": (tensors["W_enc"].double() * shrunk).float().contiguous(), "b_gate": b_gate.float(),
        "b_mag": tensors["b_enc"], "r_mag": r_mag.float().contiguous(),
    }


def _with_heads(metadata: dict[str, Any]) -> dict[str, Any]:
    """SAELens keeps the head of `hook_z[3]` in a field of its own."""
    split = dict(metadata)
    for suffix in ("", "_out"):
        match = re.fullmatch(r"(.*)\[(\d+)\]", str(metadata.get(f"hook_name{suffix}")))
        if match is not None:
            split |= {f"hook_name{suffix}": match[1], f"hook_head_index{suffix}": int(match[2])}
    return split


def _architecture(sae: SAE, cross: bool, skips: bool) -> tuple[str, str | None]:
    """SAELens' name for what this SAE computes, or the reason why it has none."""
    if isinstance(sae, Imported) and sae.config.row_norm != "none":
        return "", "rows are decoded around points of their own; the folder it was read from is its SAELens form"
    select = sae.select()
    if select.mode == "topk":
        if cross:
            return "", "SAELens has no transcoder with a fixed number of active features per row"
        return ("abstopk" if select.absolute else "topk"), None
    if select.mode == "batch_topk" or select.absolute:
        return "", f"SAELens has no architecture that selects by {select.mode} with absolute={select.absolute}"
    if isinstance(sae, Gated) and not cross:
        return "gated", None
    plain = not isinstance(select.threshold, Tensor) and select.threshold == 0
    if cross:
        return ("" if plain else "jumprelu_") + ("skip_transcoder" if skips else "transcoder"), None
    return ("standard" if plain else "jumprelu"), None


@torch.no_grad()
def folded(sae: SAE, *, subtracts_b_dec: bool) -> dict[str, Tensor]:
    """The parameters of the same function over raw activations, in fp32, with unit decoder rows.

    Folded in fp64. Where b_dec is subtracted from the input, the encoder never sees the activations' common mean
    (which would cost its digits), and what rounding b_dec to fp32 loses is made up in b_enc.
    """
    scale_in, scale_out = sae.input.scale.double().cpu(), sae.target.scale.double().cpu()
    norms = sae.W_dec.cpu().norm(dim=1)
    # as in SAE.normalised: rows that are unit to rounding stay as they are
    norms = torch.where((norms - 1).abs() <= 8 * torch.finfo(norms.dtype).eps, 1, norms).double()
    gain = norms / scale_out
    weights, biases = sae.encoder()
    W_enc = (weights.cpu().double() * (scale_in * gain)).float()
    b_dec = (sae.b_dec.cpu().double() / scale_out + sae.target.mean.cpu().double()).float()
    centre = sae.input.mean.cpu().double()
    if sae.b_pre is not None:
        centre = centre + sae.b_pre.cpu().double() / scale_in
    subtracted = b_dec.double() if subtracts_b_dec else torch.zeros_like(centre)
    b_enc = biases.cpu().double() * gain + (subtracted - centre) @ W_enc.double()
    threshold = torch.as_tensor(sae.select().threshold).detach().cpu().double() * gain
    skip: dict[str, Tensor] = {}
    if sae.config.skip:
        skip["W_skip"] = (sae.W_skip.cpu().double() * (scale_in / scale_out)).float()
        # the path takes centred rows here, raw ones there
        b_dec = (b_dec.double() - skip["W_skip"].double() @ sae.input.mean.cpu().double()).float()
    return skip | {
        "W_enc": W_enc.contiguous(), "b_enc": b_enc.float(), "b_dec": b_dec, "threshold": threshold.float(),
        "W_dec": (sae.W_dec.cpu().double() / norms.clamp_min(1e-12)[:, None]).float(),
    }


# -- reading ----------------------------------------------------------------------------------------------------------

_TENSORS = {
    "standard": (), "topk": (), "abstopk": (), "jumprelu": ("threshold",), "gated": ("b_gate", "b_mag", "r_mag"),
    "batchtopk": ("topk_threshold",), "matryoshka_batchtopk": ("topk_threshold",), "transcoder": (),
    "skip_transcoder": ("W_skip",), "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
}
"""What each architecture has beside W_enc, W_dec, b_dec and (but for gated) b_enc."""

_STEERED: dict[str, tuple[type[SAE], type[SteeredConfig]]] = {
    "standard": (ReLU, ReLUConfig), "jumprelu": (JumpReLU, JumpReLUConfig), "gated": (Gated, GatedConfig),
    "transcoder": (ReLU, ReLUConfig), "jumprelu_transcoder": (JumpReLU, JumpReLUConfig),
    "skip_transcoder": (ReLU, ReLUConfig), "jumprelu_skip_transcoder": (JumpReLU, JumpReLUConfig),
}
"""Those that are a variant here whose sparsity is a penalty; its coefficient is not in the file."""

_NOT_READ = {
    "matching_pursuit": "its features are found one after the other, by a loop that no encoder matrix expresses",
    "temporal": "it attends over the tokens of a sequence, and rows here are independent",
}


def read(folder: Path) -> SAE:
    """Read a SAELens folder, in inference or training form.

    Raises:
        SaescopeError: it is not one, is incomplete, does not fit together, or has a part that cannot be expressed.
    """
    folder = Path(folder)
    cfg = _modern(files.read_json(folder / CONFIG))
    _refuse_unknown(folder, cfg)
    tensors = _checked(folder, cfg, files.read_tensors(folder / WEIGHTS))
    sae = _empty(folder, cfg)
    places = sae.state_dict()
    for name, value in _expressed(type(sae), cfg, tensors).items():
        places[name].copy_(value)
    sae.provenance = {"source": "saelens", "cfg": cfg}
    return sae


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config in the form of version 6: earlier ones were flat."""
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
    if cfg.get("activation_fn") == "topk":
        cfg |= {"architecture": "topk", "k": (cfg.get("activation_fn_kwargs") or {}).get("k")}
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    return cfg | {"metadata": {key: cfg[key] for key in ("hook_name", "hook_head_index", "model_name") if key in cfg}}


def _refuse_unknown(folder: Path, cfg: dict[str, Any]) -> None:
    path, architecture = folder / CONFIG, cfg.get("architecture")
    if architecture in _NOT_READ:
        raise SaescopeError(f"{path}: the architecture {architecture} cannot be read: {_NOT_READ[architecture]}.")
    if architecture not in _TENSORS:
        raise SaescopeError(f"{path}: unknown architecture {architecture!r}; these are read: {', '.join(_TENSORS)}.")
    counts = ["d_in", "d_sae"] + ["k"] * (architecture in ("topk", "abstopk")) + ["d_out"] * ("coder" in architecture)
    for key in counts:
        if not isinstance(cfg.get(key), int) or cfg[key] <= 0:
            raise SaescopeError(f"{path}: {key} is {cfg.get(key)!r} where a positive whole number was expected.")
    if "k" in counts and cfg["k"] > cfg["d_sae"]:
        raise SaescopeError(f"{path}: k = {cfg['k']} exceeds d_sae = {cfg['d_sae']}.")
    norm = cfg.get("normalize_activations") or "none"
    if norm == "covariance_whitening":
        raise SaescopeError(
            f"{path}: normalize_activations is covariance_whitening, so this is a checkpoint from before the "
            "whitening was folded into the weights; give the final SAE that SAELens saved."
        )
    if norm not in ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale"):
        raise SaescopeError(f"{path}: unknown normalize_activations {norm!r}.")


def _checked(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in fp64, complete, of the right shapes and finite."""
    path, n, d_in, d_out = folder / WEIGHTS, cfg["d_sae"], cfg["d_in"], _d_out(cfg)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]
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
                f"{path}: {name} has shape {list(tensors[name].shape)} where {CONFIG} beside it asks for {list(shape)}."
            )
        if not bool(tensors[name].isfinite().all()):
            raise SaescopeError(f"{path}: {name} holds NaN or infinite values; this SAE cannot be used.")
    return {name: tensor.double() for name, tensor in tensors.items()}


def _empty(folder: Path, cfg: dict[str, Any]) -> SAE:
    """The SAE of the right class, without its weights."""
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
        return TopK(TopKVariantConfig(k=cfg["k"], **common), **places)
    if plain and architecture == "abstopk":
        return AbsTopK(AbsTopKConfig(k=cfg["k"], **common), **places)
    if plain and architecture in _STEERED:
        sae_class, config_class = _STEERED[architecture]
        return sae_class(config_class(sparsity=Sparsity(coefficient=1), **common), **places)
    config = ImportedConfig(
        architecture=architecture, k=cfg["k"] if architecture in ("topk", "abstopk") else None,
        absolute=architecture == "abstopk", row_norm=row_norm, denormalise=not cross, **common,
    )
    return Imported(config, **places)


def _average_norm(folder: Path, d_in: int) -> Transform:
    """The scale that a checkpoint keeps beside its weights; a final SAE has it folded in."""
    if (folder / SCALER).exists():
        factor = files.read_json(folder / SCALER).get("scaling_factor")
        if isinstance(factor, int | float):
            return Transform(torch.zeros(d_in), torch.tensor(float(factor)))
    warnings.warn(
        f"{folder / CONFIG}: normalize_activations is expected_average_only_in and no {SCALER} gives the factor; the "
        "weights are taken to be for raw activations, as SAELens itself takes them.",
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
    # only the checkpoints of the top-k family rank by scaled values; there it is the default, in final SAEs it is not
    if "topk" in architecture and cfg.get("rescale_acts_by_decoder_norm", "decoder_init_norm" in cfg):
        norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
        tensors |= {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms}
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").expand(n)
    if "threshold" in tensors:
        # relu comes first, so a threshold below zero is one of zero
        tensors["threshold"] = tensors["threshold"].clamp_min(0)
    if sae_class is JumpReLU:
        tensors["theta"] = tensors.pop("threshold") / JumpReLUConfig.model_fields["threshold_lr"].default
    return tensors


def _d_out(cfg: dict[str, Any]) -> int:
    return int(cfg["d_out"]) if "transcoder" in cfg["architecture"] else int(cfg["d_in"])
