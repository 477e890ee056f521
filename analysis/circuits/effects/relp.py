"""Relevance patching (RelP, Rezaei Jafari et al. 2508.21258): a model whose backward pass follows the LRP rules.

    norms       scales are constants                                                       (LN-rule)
    attention   patterns are constants                                                     (AH-rule)
    MLPs        act(z) = (act(z)/z) · z with the ratio a constant                          (identity rule)
    gated MLPs  act(g) · u passes half of its gradient to each factor                      (half rule)

The forward pass is unchanged. In a model without biases, relevance is conserved: Σ x · G over the rows of the residual
stream equals the metric at every layer (for a metric that is linear in the logits, without a soft cap on them).
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import SaescopeError
from training.model.frozen import FrozenModel, hooked
from training.model.language_model import Model

HELD = ("attention", "norms")
"""Parts frozen at the clean run."""


class RelevanceModel(FrozenModel):
    """A model with RelP's backward rules; spliced and called like a `FrozenModel`."""

    @classmethod
    def at(cls, model: Model, tokens: Int[Tensor, "n_seqs n_ctx"], freeze: Iterable[str] = HELD) -> "RelevanceModel":
        """The model, frozen at a clean run of these tokens.

        Raises:
            SaescopeError: an MLP has no hooks before and after its activation function.
        """
        _check_mlps(model)
        frozen = FrozenModel.at(model, tokens, freeze)
        return cls(model, frozen.held, frozen.shape)

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits; there is an autograd graph only if a splice adds one."""
        bridge = self.model.bridge
        with ExitStack() as stack:
            for post, factors in _mlp_hooks(self.model).items():
                seen: dict[str, Tensor] = {}
                for name in factors:
                    stack.enter_context(hooked(bridge, name, partial(_see, seen, name)))
                # runs before a splice at the same hook, which takes precedence
                stack.enter_context(hooked(bridge, post, partial(_shared, seen, factors), first=True))
            return super().logits(tokens)


def _see(seen: dict[str, Tensor], name: str, acts: Tensor) -> None:
    seen[name] = acts


def _shared(seen: dict[str, Tensor], factors: Sequence[str], post: Tensor) -> Tensor:
    """Same values, but each of n factors z gets the gradient of (1/n) · (post/z) · z, with a constant ratio."""
    linear = torch.zeros_like(post)
    for name in factors:
        z = seen.pop(name)
        held = z.detach()
        linear = linear + z * torch.where(held == 0, 0, post.detach() / held) / len(factors)
    return post.detach() + (linear - linear.detach())


def _mlp_hooks(model: Model) -> dict[str, tuple[str, ...]]:
    """Per block, the hook after the activation function, and its factors' pre-activation hooks: z, or gate and up."""
    found: dict[str, tuple[str, ...]] = {}
    for layer in range(model.n_layers):
        mlp = f"blocks.{layer}.mlp.hook_"
        gated = f"{mlp}pre_linear" in model.bridge.hook_dict
        found[f"{mlp}post"] = (f"{mlp}pre", f"{mlp}pre_linear") if gated else (f"{mlp}pre",)
    return found


@torch.no_grad()
def _check_mlps(model: Model) -> None:
    """Check numerically that the hooks mean what we assume: columns in which a factor is 0 must give 0.

    Raises:
        SaescopeError: a block's MLP lacks the hooks, or its forward pass doesn't use them.
    """
    hooks, points = _mlp_hooks(model), model.bridge.hook_dict
    for number in range(2):
        wrong = dict.fromkeys(hooks, True)
        with ExitStack() as stack:
            for post, factors in hooks.items():
                if {post, *factors} <= set(points):
                    stack.enter_context(hooked(model.bridge, factors[number % len(factors)], _every_other))
                    stack.enter_context(hooked(model.bridge, post, partial(_note_any, wrong, post)))
            FrozenModel(model, {}, (1, 4)).logits(torch.arange(4)[None] % model.d_vocab)
        if any(wrong.values()):
            mlp = next(post for post, bad in wrong.items() if bad).removesuffix(".hook_post")
            raise SaescopeError(
                f"relp needs hooks before and after each MLP's activation function, and {model.name} has none at {mlp}: "
                "use attribution or ig."
            )


def _every_other(acts: Tensor) -> Tensor:
    return acts * (torch.arange(acts.shape[-1], device=acts.device) % 2)


def _note_any(wrong: dict[str, bool], name: str, post: Tensor) -> None:
    wrong[name] = bool(post[..., ::2].any())
