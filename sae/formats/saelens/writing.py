"""Write a folder that SAELens opens: weights in the model's units, unit-norm decoder rows.

Exception: SAEs that keep the k largest and were trained on whitened rows. Their values are compared in whitened units, so
each decoder row keeps the norm of one such unit in the model.
"""

import copy
import re
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import SAE
from sae.formats.saelens.names import CONFIG, SAELENS_VERSION, WEIGHTS
from sae.io import files
from sae.variants.gated import Gated
from sae.variants.imported import Imported


def export(sae: SAE, folder: Path, *, metadata: dict[str, Any]) -> str | None:
    """Write `cfg.json` and `sae_weights.safetensors` for SAELens 6.54 into `folder`.

    BatchTopK becomes `jumprelu` with the same threshold for all features, as in SAELens itself.

    Args:
        sae: any variant.
        folder: the run folder.
        metadata: SAELens' metadata: hook_name, hook_name_out, hook_head_index, model_name, model_class_name,
            context_size, prepend_bos, dataset_path, seqpos_slice, ... `hook_z[3]` names one head; `hook_z` alone
            marks activations with a head axis, which SAELens flattens.

    Returns:
        None, or the reason why this SAE cannot be exported; nothing is written then.
    """
    if sae.input.whiten is not None:
        sae = copy.deepcopy(sae).folded()
    hook, update = metadata.get("hook_name"), (metadata.get("site") or {}).get("update", False)
    if update == "both":
        return "its input is the difference of two hooks, and a SAELens SAE reads one hook"
    cross = sae.d_in != sae.d_out or (metadata.get("hook_name_out") or hook) != hook or sae.config.skip
    skips = sae.config.skip or bool(update)
    metadata = _with_heads(metadata)
    architecture, reason = _architecture(sae, cross, skips)
    if reason is None and (reason := unfoldable(sae)) is not None:
        reason = f"the SAELens export needs unit decoder rows: {reason}"
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
        # the block's output is its input plus the update
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
    """Gated parameters with this encoder for the magnitudes and this threshold for the gate."""
    shrunk = (-r_mag.double()).exp()
    b_gate = (tensors["b_enc"].double() - tensors["threshold"].double()) * shrunk
    return {
        "W_enc": (tensors["W_enc"].double() * shrunk).float().contiguous(), "b_gate": b_gate.float(),
        "b_mag": tensors["b_enc"], "r_mag": r_mag.float().contiguous(),
    }


def _with_heads(metadata: dict[str, Any]) -> dict[str, Any]:
    """Split the head off `hook_z[3]`: SAELens has a separate field for it."""
    split = dict(metadata)
    for suffix in ("", "_out"):
        match = re.fullmatch(r"(.*)\[(\d+)\]", str(metadata.get(f"hook_name{suffix}")))
        if match is not None:
            split |= {f"hook_name{suffix}": match[1], f"hook_head_index{suffix}": int(match[2])}
    return split


def _architecture(sae: SAE, cross: bool, skips: bool) -> tuple[str, str | None]:
    """SAELens' architecture for this SAE, or the reason why there is none."""
    if isinstance(sae, Imported) and sae.config.row_norm != "none":
        return "", "per-row normalisation cannot be folded into the weights; use the original SAELens folder"
    if sae.input.unit_rows:
        return "", (
            "rows are centred and then normalised (sae.transform.unit_rows), which no normalize_activations of SAELens "
            "does and which cannot be folded into the weights"
        )
    if not sae.linear_encoder:
        return "", f"a {sae.config.variant} finds features in several rounds, which no SAELens encoder can express"
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
    """Parameters of the same function on raw activations, in fp32, with unit decoder rows (see the module docstring).

    Folding is done in fp64. If b_dec is subtracted from the input, the encoder never sees the common mean of the
    activations (which would cost precision), and b_enc compensates for rounding b_dec to fp32.
    """
    scale_in, scale_out = sae.input.scale.double().cpu(), sae.target.scale.double().cpu()
    norms = sae.W_dec.cpu().norm(dim=1)
    # as in SAE.normalised: leave rows alone that are unit up to rounding
    norms = torch.where((norms - 1).abs() <= 8 * torch.finfo(norms.dtype).eps, 1, norms).double()
    kept = torch.ones_like(norms) if sae.gain is None else sae.gain.double().cpu()
    taken, left = (kept, 1.0) if sae.select().mode == "threshold" else (1.0, kept)
    gain = norms / scale_out * taken
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
        # our skip path reads centred rows, that of SAELens raw rows
        b_dec = (b_dec.double() - skip["W_skip"].double() @ sae.input.mean.cpu().double()).float()
    return skip | {
        "W_enc": W_enc.contiguous(), "b_enc": b_enc.float(), "b_dec": b_dec, "threshold": threshold.float(),
        "W_dec": (sae.W_dec.cpu().double() * (left / norms.clamp_min(1e-12))[:, None]).float(),
    }


def unfoldable(sae: SAE) -> str | None:
    """Why folding decoder norms into the encoder would change which features are active, or None if it would not."""
    norms = sae.W_dec.detach().norm(dim=1)
    if bool(((norms - 1).abs() <= 1e-4).all()):
        return None
    if not sae.compares_values:
        return None
    return (
        f"its rows have norms from {float(norms.min()):.4g} to {float(norms.max()):.4g}, and folding them would rescale "
        "the activations that are compared to select active features"
    )
