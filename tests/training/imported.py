"""SAEs of elsewhere, written as their libraries write them, over the tiny native model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import HOOK, write_corpus
from training.finish import Result
from training.importing.run import import_run

D, N, K = 32, 64, 4
OUT = "blocks.1.hook_mlp_out"


def weights(architecture: str, d_out: int = D, seed: int = 5) -> dict[str, Tensor]:
    """Random tensors of a SAELens architecture; decoder rows have unit norm where features are ranked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    w = {"W_enc": normal(D, N) / D**0.5, "b_enc": 0.1 * normal(N), "W_dec": normal(N, d_out), "b_dec": 0.2 * normal(d_out)}
    if architecture in ("topk", "abstopk"):
        w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
    else:
        w["W_dec"] *= 0.3 / d_out**0.5
    if architecture == "gated":
        w |= {"b_gate": w.pop("b_enc"), "b_mag": 0.1 * normal(N), "r_mag": 0.2 * normal(N)}
    if "jumprelu" in architecture:
        w["threshold"] = torch.rand(N, generator=generator)
    if "skip" in architecture:
        w["W_skip"] = 0.1 * normal(d_out, D)
    return w


def saelens_folder(folder: Path, architecture: str, w: dict[str, Tensor] | None = None, **metadata: Any) -> Path:
    """`cfg.json` and `sae_weights.safetensors` as SAELens 6 writes them; `metadata` is laid on that of the tiny model."""
    folder.mkdir(parents=True)
    w = weights(architecture) if w is None else w
    cross = "transcoder" in architecture
    known = {"sae_lens_version": "6.54.12", "model_name": "native:tiny", "hook_name": HOOK}
    known |= {"hook_name_out": OUT} if cross else {}
    cfg: dict[str, Any] = {
        "architecture": architecture, "d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not cross, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {key: value for key, value in (known | metadata).items() if value is not None},
    }
    cfg |= {"d_out": w["W_dec"].shape[1]} if cross else {}
    cfg |= {"k": K, "rescale_acts_by_decoder_norm": False} if architecture in ("topk", "abstopk") else {}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(w, folder / "sae_weights.safetensors")
    return folder


def gemma_scope_folder(folder: Path, **changes: np.ndarray | None) -> Path:
    """`params.npz` as Gemma Scope has it; None leaves an array out."""
    folder.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in weights("jumprelu").items()} | changes
    np.savez(folder / "params.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder


def dense(architecture: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The reconstruction by SAELens' formulas, in fp64."""
    w, x = {name: tensor.double() for name, tensor in w.items()}, x.double()
    cross = "transcoder" in architecture
    inner = x if cross or architecture == "gemma-scope" else x - w["b_dec"]
    if architecture == "gated":
        f = (inner @ w["W_enc"] + w["b_gate"] > 0) * (inner @ w["W_enc"] * w["r_mag"].exp() + w["b_mag"]).relu()
    else:
        pre = inner @ w["W_enc"] + w["b_enc"]
        f = pre.relu() * (pre > w.get("threshold", torch.zeros(N)))
        if architecture in ("topk", "abstopk"):
            score = pre.abs() if architecture == "abstopk" else pre
            kept = torch.zeros_like(pre).scatter(1, score.topk(K, dim=1).indices, 1)
            f = kept * (pre if architecture == "abstopk" else pre.relu())
    x_hat = f @ w["W_dec"] + w["b_dec"]
    return x_hat + x @ w["W_skip"].t() if "W_skip" in w else x_hat


def imported(root: Path, path: Path | str, *overrides: str, **options: Any) -> Result:
    """`sae import` of it below `root`, on a small corpus of made-up words, in about a second."""
    if not (root / "corpus").exists():
        write_corpus(root / "corpus", n_files=120)
    small = [
        "corpus.n_ctx=32", "corpus.n_tokens=8192", "corpus.held_out=0.25", "eval.n_rows=640", "eval.n_tokens=620",
        "data.n_calib=8", "model.device=cpu", "model.dtype=float32", "cache.dtype=float32", f"cache.dir={root / 'cache'}",
    ]
    return import_run(
        str(path), [*small, *overrides], corpus=f"text:{root / 'corpus'}/*.txt", runs=root / "runs", quiet=True, **options
    )
