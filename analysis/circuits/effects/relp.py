"""Relevance patching (RelP, Rezaei Jafari et al. 2508.21258): a model whose backward pass follows LRP's rules.

    norms       scales are constants                                                       (LN-rule)
    attention   patterns are constants                                                     (AH-rule)
    MLPs        act(z) = (act(z)/z) · z with the ratio a constant                          (identity rule)
    gated MLPs  act(g) · u gives half of its gradient to each factor                       (half rule)

The values of the forward pass are the model's. Where it has no biases, relevance is conserved: Σ x · G over the rows of the
residual stream is the metric, at every layer (for a metric that is linear in the logits, without a soft cap on them).
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
"""What is held at the clean run."""


class RelevanceModel(FrozenModel):
    """A model run over its bridge with RelP's backward rules; spliced and called as a `FrozenModel` is."""

    @classmethod
    def at(cls, model: Model, tokens: Int[Tensor, "n_seqs n_ctx"], freeze: Iterable[str] = HELD) -> "RelevanceModel":
        """The model around a clean run of these tokens.

        Raises:
            SaescopeError: an MLP whose inputs and outputs of the activation have no hooks.
        """
        _check_mlps(model)
        frozen = FrozenModel.at(model, tokens, freeze)
        return cls(model, frozen.held, frozen.shape)

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits; a graph is kept only if a splice brings one."""
        bridge = self.model.bridge
        with ExitStack() as stack:
            for post, factors in _mlp_hooks(self.model).items():
                seen: dict[str, Tensor] = {}
                for name in factors:
                    stack.enter_context(hooked(bridge, name, partial(_see, seen, name)))
                # before a splice at the same hook, which has the last word
                stack.enter_context(hooked(bridge, post, partial(_shared, seen, factors), first=True))
            return super().logits(tokens)


def _see(seen: dict[str, Tensor], name: str, acts: Tensor) -> None:
    seen[name] = acts


def _shared(seen: dict[str, Tensor], factors: Sequence[str], post: Tensor) -> Tensor:
    """The same values, whose gradient each factor z gets as that of (1/n) · (post/z) · z, with the ratio a constant."""
    linear = torch.zeros_like(post)
    for name in factors:
        z = seen.pop(name)
        held = z.detach()
        linear = linear + z * torch.where(held == 0, 0, post.detach() / held) / len(factors)
    return post.detach() + (linear - linear.detach())


def _mlp_hooks(model: Model) -> dict[str, tuple[str, ...]]:
    """What leaves each block's activation function, and the pre-activations that are its factors: z, or gate and up."""
    found: dict[str, tuple[str, ...]] = {}
    for layer in range(model.n_layers):
        mlp = f"blocks.{layer}.mlp.hook_"
        gated = f"{mlp}pre_linear" in model.bridge.hook_dict
        found[f"{mlp}post"] = (f"{mlp}pre", f"{mlp}pre_linear") if gated else (f"{mlp}pre",)
    return found


@torch.no_grad()
def _check_mlps(model: Model) -> None:
    """Check by value that the hooks mean what they are taken for: in each column in which a factor is 0, 0 comes out.

    Raises:
        SaescopeError: a block's MLP does not show them, or they take no part in its forward.
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
                f"relp needs what goes into each MLP's activation function and what comes out of it, and {model.name} does "
                f"not show these at {mlp}: use attribution or ig."
            )


def _every_other(acts: Tensor) -> Tensor:
    return acts * (torch.arange(acts.shape[-1], device=acts.device) % 2)


def _note_any(wrong: dict[str, bool], name: str, post: Tensor) -> None:
    wrong[name] = bool(post[..., ::2].any())
