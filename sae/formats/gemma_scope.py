"""The Gemma Scope format (2408.05147): `params.npz` in a folder such as `layer_20/width_16k/average_l0_71`.

    pre = x W_enc + b_enc      f = relu(pre) [pre > threshold]      x̂ = f W_dec + b_dec

JumpReLU SAEs and transcoders of raw activations; b_dec is never subtracted. Decoder rows have unit norm up to rounding.
A transcoder has the same arrays; only the name of its repository says which hooks it maps between.
`affine_skip_connection` [d_in, d_out] is a skip path that adds x times itself to x̂. Pickled arrays are refused.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.base import SAE
from sae.errors import SaescopeError
from sae.formats import saelens

PARAMS = "params.npz"
_NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_SKIP = "affine_skip_connection"
_SITES = {
    "res": ("hook_resid_post", None), "mlp": ("hook_mlp_out", None), "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""Hooks of a block by the last word of the repository's name."""


class Guess(NamedTuple):
    """Model and hooks inferred from a path in the layout of the Gemma Scope repositories."""

    model: str | None
    hook: str | None
    target: str | None


def read(folder: Path) -> SAE:
    """Read a folder with `params.npz`.

    Raises:
        SaescopeError: the archive is unreadable or has pickles, lacks an array, or its shapes are inconsistent.
    """
    path = Path(folder) / PARAMS
    tensors = _checked(path, _arrays(path))
    (d_in, d_sae), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    skips = "W_skip" in tensors
    cfg = {
        "architecture": f"jumprelu_{'skip_' if skips else ''}transcoder" if skips or d_in != d_out else "jumprelu",
        "d_in": d_in, "d_out": d_out, "d_sae": d_sae, "apply_b_dec_to_input": False,
    }
    sae = saelens.of_tensors(Path(folder), cfg, tensors)
    sae.provenance = {"source": "gemma-scope"}
    return sae


def guess(path: str) -> Guess:
    """Infer model and hooks from a path such as `google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`."""
    repo = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)\b", path)
    layer = re.search(r"\blayer_(\d+)\b", path)
    model = f"hub:google/gemma-2-{repo[1]}{'-it' if repo[2] == 'it' else ''}" if repo else None
    if not (repo and layer):
        return Guess(model, None, None)
    hook, target = _SITES[repo[3]]
    block = f"blocks.{layer[1]}"
    return Guess(model, f"{block}.{hook}", target and f"{block}.{target}")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise SaescopeError(
            f"{path}: cannot be read as an archive of plain arrays ({reason}); pickles are never opened: download the file "
            "again, or re-save it with numpy.savez."
        ) from None


def _checked(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Check that all arrays are there, with consistent shapes and finite; return them as fp64 tensors."""
    known = {**{name: name for name in _NEEDED}, "w_enc": "W_enc", "w_dec": "W_dec", _SKIP: "W_skip"}
    if "scaling_factor" in arrays and (arrays["scaling_factor"] == 1).all():
        del arrays["scaling_factor"]
    found = {known.get(name, name): array for name, array in arrays.items()}
    lacking, unknown = [n for n in _NEEDED if n not in found], sorted(set(found) - {*known.values()})
    if lacking or unknown:
        raise SaescopeError(
            f"{path}: Gemma Scope has the arrays {', '.join(_NEEDED)}, and optionally {_SKIP}; found "
            f"{', '.join(sorted(arrays)) or 'none'}."
        )
    numbers = all(array.dtype.kind in "fiu" for array in found.values())
    if not numbers or found["W_enc"].ndim != 2 or found["W_dec"].ndim != 2:
        raise SaescopeError(f"{path}: W_enc and W_dec are not numeric matrices; this is not a Gemma Scope SAE.")
    (d_in, d_sae), d_out = found["W_enc"].shape, found["W_dec"].shape[1]
    shapes = {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,), "threshold": (d_sae,),
        "W_skip": (d_in, d_out),
    }
    for name, array in found.items():
        if array.shape != shapes[name]:
            raise SaescopeError(
                f"{path}: {name} has shape {list(array.shape)}; W_enc {[d_in, d_sae]} and W_dec "
                f"{list(found['W_dec'].shape)} require {list(shapes[name])}."
            )
        if not np.isfinite(array).all():
            raise SaescopeError(f"{path}: {name} contains NaN or infinite values; this SAE cannot be used.")
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in found.items()}
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].t()
    return tensors
