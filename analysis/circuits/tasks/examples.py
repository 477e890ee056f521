"""Tokenised examples of a task, the input of every estimator and every test of a circuit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Examples whose prompts have one length; a task with several prompt lengths has several of these.

    Attributes:
        clean: tokens of the prompts, with BOS if the model uses it. The answer is the next token.
        corrupt: tokens of the counterfactual prompts, of the same length; None for single prompts.
        right: tokens that answer the clean prompt, padded with −1.
        wrong: tokens that answer the counterfactual prompt, padded with −1; no columns if the task has none.
        keep: rows where SAEs are spliced in: all but special tokens.
        reference: last-position logits of the clean run, for metrics that compare with it (KL).
    """

    clean: Int64[Tensor, "n_examples n_ctx"]
    corrupt: Int64[Tensor, "n_examples n_ctx"] | None
    right: Int64[Tensor, "n_examples n_right"]
    wrong: Int64[Tensor, "n_examples n_wrong"]
    keep: Bool[Tensor, "n_examples n_ctx"]
    reference: Float[Tensor, "n_examples d_vocab"] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def n_ctx(self) -> int:
        """Tokens per prompt."""
        return self.clean.shape[1]

    def take(self, which: Tensor | slice) -> "Examples":
        """Select examples by index, mask or slice."""
        return replace(
            self, clean=self.clean[which], right=self.right[which], wrong=self.wrong[which], keep=self.keep[which],
            corrupt=None if self.corrupt is None else self.corrupt[which],
            reference=None if self.reference is None else self.reference[which],
        )

    def batches(self, size: int) -> Iterator["Examples"]:
        """Batches of at most `size` examples, in order."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def swapped(self) -> "Examples":
        """Swap clean and counterfactual prompts; the answers, and so the metric, stay the same."""
        assert self.corrupt is not None, "examples without a counterfactual"
        return replace(self, clean=self.corrupt, corrupt=self.clean)


Metric = Callable[[Float[Tensor, "n_examples d_vocab"], Examples], Float[Tensor, " n_examples"]]
"""Differentiable function of last-position logits that returns one number per example."""


def value(
    metric: Metric, logits: Float[Tensor, "n_examples n_logits d_vocab"], examples: Examples
) -> Float[Tensor, " n_examples"]:
    """The metric of a run, in at least fp32."""
    last = logits[:, -1]
    return metric(last.to(torch.promote_types(last.dtype, torch.float32)), examples)
