"""Benchmark harvesting activations against the bare Hugging Face forward pass up to the same layer."""

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.errors import SaescopeError
from training.model.language_model import Model
from training.model.load import load_model
from training.model.packaged import PACKAGED, packaged_dir, quiet_transformers


def bench_harvest(
    model: str = "smollm2-135m",
    hook: str = "blocks.9.hook_resid_post",
    dtype: str = "auto",
    n_seqs: int = 8,
    n_ctx: int = 256,
    repeats: int = 7,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time `Model.activations` and the bare forward pass, alternating in one process after one warm-up each.

    The bare model is the Hugging Face model truncated after the hook's block, without final norm and unembedding, with the
    same dtype and batch, and Hugging Face's default attention.

    Args:
        model: a packaged model or `local:DIR`.
        hook: `blocks.N.hook_resid_post`.
        dtype: dtype of both.
        n_seqs: sequences per batch.
        n_ctx: tokens per sequence.
        repeats: timed runs of each.
        device: device of both.

    Returns:
        Medians in tokens/s (`ours_tokens_per_s`, `bare_tokens_per_s`), minimum and maximum of each (`*_range`), their
        `ratio` (ours / bare; the median of pairwise ratios), and the settings.

    Raises:
        SaescopeError: the hook is not the output of a block.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook)
    if match is None:
        raise SaescopeError(
            f"bench harvest only supports the output of a block, not {hook}: use blocks.N.hook_resid_post."
        )
    ours = load_model(model, device=device, dtype=dtype)
    ours.d_hook(hook)
    bare = shortened(ours, model, n_layers=int(match[1]) + 1)
    tokens = torch.randint(0, ours.d_vocab, (n_seqs, n_ctx), generator=torch.Generator().manual_seed(0)).to(ours.device)
    seconds = _alternate(
        {"ours": lambda: ours.activations(tokens, [hook]), "bare": lambda: bare(input_ids=tokens, use_cache=False)},
        repeats,
        ours.device,
    )
    return _summary(seconds, tokens) | {
        "model": model,
        "hook": hook,
        "dtype": ours.identity["dtype"],
        "device": str(ours.device),
        "n_seqs": n_seqs,
        "n_ctx": n_ctx,
        "repeats": repeats,
        "n_threads": torch.get_num_threads(),
    }


def shortened(ours: Model, model: str, n_layers: int) -> nn.Module:
    """A newly loaded bare network, truncated to its first `n_layers` layers."""
    from transformers import AutoModel

    source = str(packaged_dir(model)) if model in PACKAGED else model.removeprefix("local:")
    with quiet_transformers():
        network = AutoModel.from_pretrained(source, dtype=ours.dtype, local_files_only=True)
    network.layers = network.layers[:n_layers]
    network.norm = nn.Identity()
    bare: nn.Module = network.eval().requires_grad_(False).to(ours.device)
    return bare


@torch.no_grad()
def _alternate(runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each run, alternating so that other load affects all equally; the first round is discarded."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def _summary(seconds: dict[str, list[float]], tokens: Int[Tensor, "n_seqs n_ctx"]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, taken in seconds.items():
        figures[f"{name}_tokens_per_s"] = round(tokens.numel() / statistics.median(taken), 1)
        figures[f"{name}_range"] = [round(tokens.numel() / t, 1) for t in (max(taken), min(taken))]
    pairs = zip(seconds["ours"], seconds["bare"], strict=True)
    return {"ratio": round(statistics.median(bare / ours for ours, bare in pairs), 3), **figures}
