"""Texts with an intended and a spurious label, as tokens of one length."""

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
        text: what is read.
        intended: what a probe is to tell.
        spurious: what goes with it in biased data.
        giveaways: (first, end) of the characters that tell the spurious label; may be empty.
    """

    text: str
    intended: bool
    spurious: bool
    giveaways: tuple[tuple[int, int], ...] = ()

    def without_giveaways(self) -> "Text":
        """The text with these characters left out."""
        kept, end = "", 0
        for first, after in sorted(self.giveaways):
            kept, end = kept + self.text[end:first], after
        return Text(kept + self.text[end:], self.intended, self.spurious)


@dataclass(frozen=True)
class Labelled:
    """Texts as tokens.

    Attributes:
        tokens: BOS first where the model has it; texts are cut to one length.
        keep: rows that SAEs are spliced in at, and that a probe averages over: all but special tokens.
        intended, spurious: by text.
        giveaway: tokens that overlap a giveaway.
    """

    tokens: Int64[Tensor, "n_texts n_ctx"]
    keep: Bool[Tensor, "n_texts n_ctx"]
    intended: Bool[Tensor, " n_texts"]
    spurious: Bool[Tensor, " n_texts"]
    giveaway: Bool[Tensor, "n_texts n_ctx"]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, which: Tensor | slice) -> "Labelled":
        """Some of them."""
        return Labelled(
            self.tokens[which], self.keep[which], self.intended[which], self.spurious[which], self.giveaway[which]
        )

    def batches(self, size: int = 64) -> Iterator["Labelled"]:
        """In their order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def mean(self, rows: Float[Tensor, "n_texts n_ctx d"]) -> Float[Tensor, "n_texts d"]:
        """Each text's mean over its kept rows."""
        weight = self.keep.to(rows)
        return (rows * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def labelled(texts: Sequence[Text], model: Model, n_ctx: int) -> Labelled:
    """Tokenise, and cut to `n_ctx` tokens.

    Raises:
        SaescopeError: no texts, or one that is shorter.
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
        raise SaescopeError(f"A text has {len(ids)} tokens where {n_ctx} are read of each: {one.text[:60]!r}.")
    return ids[:n_ctx], marks[:n_ctx]
