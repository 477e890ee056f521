"""Texts with an intended and a spurious label, tokenised to one length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.model.language_model import Model


@dataclass(frozen=True)
class Text:
    """A text and its labels.

    Attributes:
        text: the text.
        intended: label the probe should learn.
        spurious: label that agrees with it in biased data.
        giveaways: (first, end) character spans that give away the spurious label; may be empty.
    """

    text: str
    intended: bool
    spurious: bool
    giveaways: tuple[tuple[int, int], ...] = ()

    def without_giveaways(self) -> "Text":
        """The text with the giveaways removed."""
        kept, end = "", 0
        for first, after in sorted(self.giveaways):
            kept, end = kept + self.text[end:first], after
        return Text(kept + self.text[end:], self.intended, self.spurious)


@dataclass(frozen=True)
class Labelled:
    """Tokenised texts with labels.

    Attributes:
        tokens: token ids, with BOS if the model uses it; texts are truncated to one length.
        keep: rows where SAEs are spliced in and that probes average over: all but special tokens.
        intended, spurious: labels by text.
        giveaway: mask of tokens that overlap a giveaway.
    """

    tokens: Int64[Tensor, "n_texts n_ctx"]
    keep: Bool[Tensor, "n_texts n_ctx"]
    intended: Bool[Tensor, " n_texts"]
    spurious: Bool[Tensor, " n_texts"]
    giveaway: Bool[Tensor, "n_texts n_ctx"]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, which: Tensor | slice) -> "Labelled":
        """Select texts."""
        return Labelled(
            self.tokens[which], self.keep[which], self.intended[which], self.spurious[which], self.giveaway[which]
        )

    def batches(self, size: int = 64) -> Iterator["Labelled"]:
        """Batches of at most `size` texts, in order."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def mean(self, rows: Float[Tensor, "n_texts n_ctx d"]) -> Float[Tensor, "n_texts d"]:
        """Mean over each text's kept rows."""
        weight = self.keep.to(rows)
        return (rows * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def labelled(texts: Sequence[Text], model: Model, n_ctx: int) -> Labelled:
    """Tokenise and truncate to `n_ctx` tokens.

    Raises:
        SaescopeError: no texts, or one that is too short.
    """
    if not texts:
        raise SaescopeError("There are no texts.")
    parts = [_tokens(one, model, n_ctx) for one in texts]
    tokens = torch.tensor([ids for ids, _ in parts])
    keep = ~torch.isin(tokens, torch.tensor(sorted(model.special_ids), dtype=torch.int64))
    return Labelled(
        tokens, keep, torch.tensor([one.intended for one in texts]), torch.tensor([one.spurious for one in texts]),
        torch.tensor([marks for _, marks in parts]),
    )


def _tokens(one: Text, model: Model, n_ctx: int) -> tuple[list[int], list[bool]]:
    found = model.tokenizer(one.text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    marks = [any(first < b and a < end for a, b in one.giveaways) for first, end in found["offset_mapping"]]
    ids = list(found["input_ids"])
    if model.prepend_bos:
        ids, marks = [model.bos_id, *ids], [False, *marks]
    if len(ids) < n_ctx:
        raise SaescopeError(f"A text has {len(ids)} tokens, fewer than the {n_ctx} required: {one.text[:60]!r}.")
    return ids[:n_ctx], marks[:n_ctx]
