"""Memory checks: estimate from counts whether a run fits, before anything is allocated."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from sae.devices import resolve_device
from sae.errors import SaescopeError
from training.config.schema import Config

_CGROUP = Path("/sys/fs/cgroup")
PER_SAVED_WEIGHT = 12
"""Bytes of host memory per weight for the snapshot that is written as a checkpoint."""
PER_SCORE = 12
"""Bytes per pre-activation: itself in fp32, and twice as much for intermediates."""
PER_WEIGHT = 16
"""Bytes per weight in training: weight, gradient and two Adam moments, in fp32."""


def available(device: torch.device | None = None) -> int:
    """Free bytes of host memory (within the container's limit, if that is lower) or of a GPU."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


def require(n_bytes: int, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Check that something fits in memory.

    Args:
        n_bytes: lower bound of the bytes needed.
        what: what needs them, for the message.
        remedy: what the user can lower, for the message.
        device: the device; None is host memory.

    Raises:
        SaescopeError: less is available.
    """
    there = available(device)
    if n_bytes > there:
        place = f" on {device}" if device is not None and device.type == "cuda" else ""
        raise SaescopeError(
            f"{what} needs at least {n_bytes / 1e9:,.1f} GB of memory{place}, but {there / 1e9:,.1f} GB are available; "
            f"{remedy}."
        )


def require_saes(members: Sequence[Config], widths: Mapping[str, int], *, saved: bool = True) -> None:
    """Check that SAEs fit in memory: weights, gradients, Adam moments and, if the run is `saved`, the checkpoint snapshot.

    `widths` gives the row width of each hook.
    """
    device = resolve_device(members[0].train.device)
    weights = sum(_weights(m, widths) for m in members)
    sizes = ", ".join(f"{n:,}" for n in dict.fromkeys(m.sae.d_sae for m in members))
    what = f"sae.d_sae = {sizes}" if len(members) == 1 else f"a sweep of {len(members)} SAEs (sae.d_sae = {sizes})"
    needed = PER_WEIGHT * weights
    snapshot = PER_SAVED_WEIGHT * weights if saved else 0
    if device.type == "cuda":
        require(needed, what, "lower sae.d_sae", device)
        require(snapshot, f"a checkpoint of {what}", "lower sae.d_sae")
    else:
        require(needed + snapshot, what, "lower sae.d_sae", device)


def training_bytes(members: Sequence[Config], widths: Mapping[str, int]) -> int:
    """Estimated device bytes of training: weights, gradients, Adam moments, and the temporaries of one step.

    A step makes bf16 copies of the weights and pre-activations of all features for all rows. `widths` gives the row width
    of each hook.
    """
    weights = [_weights(m, widths) for m in members]
    scores = [m.sae.d_sae // m.train.shards * m.data.batch_rows for m in members]
    steps = [2 * n + PER_SCORE * n_scores for n, n_scores in zip(weights, scores, strict=True)]
    return PER_WEIGHT * sum(weights) + max(steps)


def _weights(member: Config, widths: Mapping[str, int]) -> int:
    """Number of weights in W_enc and W_dec that one rank holds."""
    return member.sae.d_sae // member.train.shards * (widths.get(member.site.input, 1) + widths.get(member.site.output, 1))
