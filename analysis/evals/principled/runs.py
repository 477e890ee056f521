"""Runs of a model on a task's prompts with the site's activations replaced, and metrics on the logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import kl_div

from training.model.language_model import Model
from training.model.splice import at_sites
from training.site import Site, SiteRows


@dataclass(frozen=True)
class Prompted:
    """A model, a site, and prompts of one length.

    Attributes:
        model, site: where activations are replaced.
        tokens: token ids of the prompts.
    """

    model: Model
    site: Site
    tokens: Int64[Tensor, "n n_ctx"]

    @property
    def kept(self) -> Bool[Tensor, "n n_ctx"]:
        """Mask of positions whose activations may be replaced: all but special tokens."""
        special = torch.tensor(sorted(self.model.special_ids), dtype=torch.long)
        return ~torch.isin(self.tokens, special)

    def rows(self) -> SiteRows:
        """x and target `[n, n_ctx, d]` at every position, fp32 on the CPU."""
        acts = self.model.activations(self.tokens, self.site.hooks)
        return self.site.rows({hook: rows.float().cpu() for hook, rows in acts.items()})

    @torch.no_grad()
    def logits(
        self, target: Float[Tensor, "n n_ctx d_out"] | None = None, at: int | None = None
    ) -> Float[Tensor, "n d_vocab"]:
        """Last-position logits, with the site's target replaced.

        Args:
            target: new activations; None changes nothing.
            at: the only position to replace; None replaces all that aren't special tokens.
        """
        if target is None:
            return self.model.last_logits(self.tokens)[:, 0].float().cpu()
        mask = self.kept
        if at is not None:
            mask = torch.zeros_like(mask)
            mask[:, at] = True
        with at_sites(self.model, {self.site: lambda rows, which: target[which.cpu()].to(rows.target)}, mask):
            return self.model.last_logits(self.tokens)[:, 0].float().cpu()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """While open, everything before the site runs only once."""
        with self.model.replayed(self.site.hooks):
            yield


def preference(
    logits: Float[Tensor, "n d_vocab"], first: Int64[Tensor, "n n_first"], second: Int64[Tensor, "n n_second"]
) -> Float[Tensor, " n"]:
    """Mean logit of the first answers minus that of the second; −1 is padding."""
    return _mean(logits, first) - _mean(logits, second)


def _mean(logits: Tensor, ids: Tensor) -> Tensor:
    there = ids >= 0
    return torch.where(there, logits.gather(1, ids.clamp_min(0)), 0.0).sum(1) / there.sum(1)


def divergence(logits: Float[Tensor, "n d_vocab"], other: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
    """KL(first ‖ other) of the next token, in nats."""
    p, q = logits.double().log_softmax(1), other.double().log_softmax(1)
    return kl_div(q, p, reduction="none", log_target=True).sum(1)
