"""What an SAE reads and what it reconstructs: the only place that turns activations into (x, target) and back.

    SAE                  x = a(input)                      target = a(input)
    transcoder           x = a(input)                      target = a(target)
    update: true         x = a(input)                      target = a(target) − a(input)
    update: both         x = a(target) − a(input)          target = the same (2410.22366)

a(hook) is the raw activation at a hook. Training, evaluation, the index, prompts, steering and circuits all read and write
activations through a `Site`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from sae.errors import SaescopeError
from sae.section import Section


class SiteRows(NamedTuple):
    """Raw activations of a site; for a plain SAE x and target are the same tensor."""

    x: Float[Tensor, "*rows d_in"]
    target: Float[Tensor, "*rows d_out"]


class Site(Section):
    """The hooks an SAE reads and reconstructs."""

    input: str = "acts"
    """Hook the SAE reads, by its TransformerLens name; append `[h]` for a single head. For `module:` sources, a module's
    path (its output), or the path with `.hook_in` appended (its input)."""
    target: str | None = None
    """Hook it reconstructs: null means the input (an SAE), any other hook makes it a transcoder."""
    update: bool | Literal["both"] = False
    """Reconstruct target − input instead of target; `both` also reads it (an SAE on a block's update, 2410.22366)."""

    @model_validator(mode="after")
    def _update_has_target(self) -> "Site":
        if self.update and self.target in (None, self.input):
            raise ValueError("update needs a target that differs from the input")
        return self

    @property
    def output(self) -> str:
        """The hook whose activation is reconstructed."""
        return self.target or self.input

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks whose activations are needed, the input first."""
        return tuple(dict.fromkeys((self.input, self.output)))

    @property
    def cross(self) -> bool:
        """Whether x and target differ (a transcoder, or an update read from the input); each then has its own transform."""
        return len(self.hooks) > 1 and self.update != "both"

    def rows(self, acts: Mapping[str, Float[Tensor, "*rows _"]]) -> SiteRows:
        """Turn raw activations into x and target, in the activations' dtype; differences are in fp32 or wider.

        Args:
            acts: activations `[..., d]` by hook; those of `hooks` are read.

        Raises:
            SaescopeError: an update between hooks of different widths.
        """
        before, after = acts[self.input], acts[self.output]
        if not self.update:
            return SiteRows(before, after)
        if before.shape != after.shape:
            raise SaescopeError(
                f"site.update: {self.target} has rows of width {after.shape[-1]}, {self.input} of {before.shape[-1]}, so "
                "they cannot be subtracted; choose hooks of the same width, or remove update."
            )
        wide = torch.promote_types(after.dtype, torch.float32)
        change = after.to(wide) - before.to(wide)
        return SiteRows(change if self.update == "both" else before, change)

    def activation(
        self, x_hat: Float[Tensor, "*rows d_out"], acts: Mapping[str, Float[Tensor, "*rows _"]]
    ) -> Float[Tensor, "*rows d_out"]:
        """The activation at `output` whose target is `x_hat`: the inverse of `rows`, in the dtype of `x_hat`.

        Args:
            x_hat: a reconstruction of the target, in the model's units.
            acts: as in `rows`; only an update needs the input's.
        """
        return x_hat + acts[self.input].to(x_hat.dtype) if self.update else x_hat
