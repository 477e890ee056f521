"""Run a model with a vector added to its activations at one position of each sentence."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.model.language_model import Model
from training.model.splice import at_sites
from training.site import Site, SiteRows

BATCH = 32


@torch.no_grad()
def logits_after(
    model: Model, site: Site, tokens: Int64[Tensor, "n n_ctx"], at: Int64[np.ndarray, " n"], last: Int64[np.ndarray, " n"],
    added: Float[Tensor, "n d_out"] | None = None,
) -> Float[Tensor, "n d_vocab"]:
    """Logits at one position of each sentence, with a vector added to the site's target at another.

    Args:
        model: the language model.
        site: where to add the vectors.
        tokens: the sentences.
        at: steered position of each sentence.
        last: position of each sentence whose logits are read.
        added: vector per sentence; None adds nothing.
    """
    out = []
    for start in range(0, len(tokens), BATCH):
        some = slice(start, start + BATCH)
        ids, which = tokens[some], torch.arange(len(tokens[some]))
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[which, torch.from_numpy(at[some])] = True
        if added is None:
            logits = model.logits(ids)
        else:
            # one kept row per sentence, so rows are in the order of the sentences
            with at_sites(model, {site: partial(_plus, added[some])}, mask):
                logits = model.logits(ids)
        out.append(logits[which, torch.from_numpy(last[some])].float().cpu())
    return torch.cat(out)


def _plus(added: Float[Tensor, "n d_out"], rows: SiteRows, _: Tensor) -> Float[Tensor, "n d_out"]:
    return rows.target + added.to(rows.target)


def rows_at(
    model: Model, site: Site, tokens: Int64[Tensor, "n n_ctx"], at: Int64[np.ndarray, " n"]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """x and target of a site at one position of each sentence, fp32."""
    parts: dict[str, list[Tensor]] = {hook: [] for hook in site.hooks}
    for start in range(0, len(tokens), BATCH):
        some = slice(start, start + BATCH)
        where = torch.arange(len(tokens[some])), torch.from_numpy(at[some])
        for hook, acts in model.activations(tokens[some], site.hooks).items():
            parts[hook].append(acts[where].float().cpu())
    rows = site.rows({hook: torch.cat(some) for hook, some in parts.items()})
    return rows.x, rows.target
