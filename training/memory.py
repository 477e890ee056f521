"""Whether what is asked for fits into memory: estimated from counts before anything is allocated."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from sae.devices import resolve_device
from sae.errors import SaescopeError
from training.config.schema import Config

_CGROUP = Path("/sys/fs/cgroup")
PER_SAVED_WEIGHT = 12
"""Bytes of a weight in the snapshot that is written as a checkpoint, in the machine's own memory."""
PER_SCORE = 12
"""Bytes of the score of a feature for a row: in fp32, and twice as much for what is made of it on the way."""
PER_WEIGHT = 16
"""Bytes of a weight in training: itself, its gradient and Adam's two averages, in fp32."""


def available(device: torch.device | None = None) -> int:
    """Bytes that a process may still take, of the machine's memory (of its container's, where that is less) or a GPU's."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


def require(n_bytes: int, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Refuse what cannot fit.

    Args:
        n_bytes: at least as many are needed.
        what: needs them, for the message.
        remedy: what to lower.
        device: where; None is the machine's own memory.

    Raises:
        SaescopeError: there is less.
    """
    there = available(device)
    if n_bytes > there:
        place = f" on {device}" if device is not None and device.type == "cuda" else ""
        raise SaescopeError(
            f"{what} needs {n_bytes / 1e9:,.1f} GB of memory{place} at least, and {there / 1e9:,.1f} GB are available; "
            f"{remedy}."
        )


def require_saes(members: Sequence[Config], widths: Mapping[str, int], *, saved: bool = True) -> None:
    """Refuse SAEs that cannot fit: weights, gradients, averages and, of a training that is `saved`, the snapshot of it all.

    `widths` are those of the rows of each hook.
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
    """What SAEs in training take of their device, for a plan: weights, their gradients and averages, and one step.

    A step makes copies of the weights in bf16, and scores of all features for all rows. `widths` are those of the rows of
    each hook.
    """
    weights = [_weights(m, widths) for m in members]
    scores = [m.sae.d_sae // m.train.shards * m.data.batch_rows for m in members]
    steps = [2 * n + PER_SCORE * n_scores for n, n_scores in zip(weights, scores, strict=True)]
    return PER_WEIGHT * sum(weights) + max(steps)


def _weights(member: Config, widths: Mapping[str, int]) -> int:
    """Numbers in the two matrices, of those that a rank holds."""
    return member.sae.d_sae // member.train.shards * (widths.get(member.site.input, 1) + widths.get(member.site.output, 1))
