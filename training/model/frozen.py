"""The linear forward: a model with attention patterns, norm scales and MLP outputs frozen at their clean values.

With all three frozen, everything between two points of the residual stream is linear: attention moves values with constant
weights, norms divide by constants, MLPs add constants (or are replaced by a spliced transcoder). So a gradient is the exact
effect of a change of any size: the setting of attribution graphs (Ameisen et al. 2025). It runs on the TransformerBridge,
with eager attention and all TransformerLens hooks.

    attention   hook_pattern; for architectures with fused attention (GPT-J), queries and keys
    norms       hook_scale of every norm, including norms after a sublayer and norms of queries and keys
    mlps        mlp.hook_out, before a norm that follows it
"""

import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import SaescopeError
from training.model.hooks import Replace, replaced
from training.model.language_model import Model

HELD = ("attention", "norms", "mlps")
"""The parts that can be frozen."""
_NORM_NOTE = r"A forward hook edited hook_scale|Backward hooks on hook_scale"
_live: "weakref.WeakKeyDictionary[Model, dict[str, bool]]" = weakref.WeakKeyDictionary()


class FrozenModel:
    """A model run on its bridge with some activations frozen at recorded values; spliced and called like a `Model`.

    Attributes:
        model: the model.
        held: hook → its frozen value, without gradient.
        shape: (n_seqs, n_ctx) of the clean run.
    """

    def __init__(self, model: Model, held: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.model, self.held, self.shape = model, dict(held), shape
        self._live = live_patterns(model)

    @classmethod
    def at(cls, model: Model, tokens: Int[Tensor, "n_seqs n_ctx"], freeze: Iterable[str] = HELD) -> "FrozenModel":
        """Freeze a model at the values of a clean run on these tokens.

        Args:
            model: any model.
            tokens: tokens of the clean run. Later runs must have the same shape, or this is one sequence that they repeat.
            freeze: any of `HELD`; none gives the bridge's own forward.

        Raises:
            SaescopeError: an unknown part, or this architecture has no hook for it.
        """
        names = [name for part in freeze for name in _hooks_of(model, part)]
        found: dict[str, Tensor] = {}
        with torch.no_grad(), ExitStack() as stack:
            for name in names:
                stack.enter_context(hooked(model.bridge, name, partial(found.__setitem__, name)))
            _run(model, tokens)
        return cls(model, found, (tokens.shape[0], tokens.shape[1]))

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits; an autograd graph is only built if a splice requires gradients.

        Raises:
            SaescopeError: the tokens' shape differs from that of the frozen values.
        """
        if self.held and (self.shape[0] not in (1, len(tokens)) or tokens.shape[1] != self.shape[1]):
            raise SaescopeError(
                f"The model was frozen on tokens of shape {list(self.shape)}, but this run has {list(tokens.shape)}: "
                "freeze it on tokens of this shape."
            )
        with ExitStack() as stack:
            for name, value in self.held.items():
                # before any other hook there, so that a splice can replace the frozen value
                stack.enter_context(hooked(self.model.bridge, name, partial(_held, value), first=True))
            return _run(self.model, tokens)

    @contextmanager
    def splice(self, hook: str, fn: Replace) -> Iterator[None]:
        """Context in which `fn` replaces the activation at `hook` in every run: `Model.splice` for the bridge.

        At `hook_resid_mid` the skip connection sees the replacement too, unlike in the bridge itself.

        Args:
            hook: a name from `model.hooks()`, or one head of it; or any other hook of the bridge, which isn't flattened.
            fn: activation → its replacement, of the same shape and dtype.

        Raises:
            SaescopeError: no such hook, or its value isn't used in the forward pass.
        """
        bridge = self.model.bridge
        name = re.sub(r"\[\d+\]$", "", hook)
        if name not in self.model.hooks() and name in bridge.hook_dict:
            self._refuse_decoration(name)
            with hooked(bridge, name, fn):
                yield
            return
        self.model.d_hook(hook)  # raises if there is no such hook
        location, taken = self.model.location(hook)
        change: list[Tensor] = []

        def into_branch(acts: Tensor) -> Tensor:
            flat = acts.flatten(2)
            new = replaced(flat, taken, fn)
            change[:] = [new - flat]
            return new.view_as(acts)

        with ExitStack() as stack:
            stack.enter_context(hooked(bridge, name, into_branch))
            if location.block is not None:
                out = name.removesuffix("hook_resid_mid") + "hook_out"
                # first: the block's output is incomplete until then
                stack.enter_context(hooked(bridge, out, lambda acts: acts + change.pop(), first=True))
            yield


    def _refuse_decoration(self, name: str) -> None:
        """Raise an error for patterns and scores that the bridge only computes for display, after fused attention."""
        block, _, end = name.rpartition(".")
        if end in ("hook_pattern", "hook_attn_scores") and not self._live.get(block):
            raise SaescopeError(
                f"{name} of {self.model.name} is not used in the forward pass: TransformerLens runs this attention fused; "
                f"use {block}.hook_q, hook_k, hook_v or hook_z."
            )


def _held(value: Tensor, acts: Tensor) -> Tensor:
    return value.expand(acts.shape)


def _note_silence(silent: dict[str, bool], block: str, z: Tensor) -> None:
    silent[block] = not bool(z.any())


@contextmanager
def hooked(bridge: Any, name: str, fn: Callable[[Tensor], Tensor | None], *, first: bool = False) -> Iterator[None]:
    """Context in which `fn` is called with the value at a bridge hook; if it returns a tensor, that replaces the value."""
    point = bridge.hook_dict[name]
    handle = point.add_hook(lambda acts, hook: fn(acts), prepend=first)  # noqa: ARG005 (passed by name)
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def _run(model: Model, tokens: Tensor) -> Tensor:
    model.check_length(tokens.shape[1])
    with warnings.catch_warnings():
        # expected: a norm with a frozen scale is recomputed and rounds differently
        warnings.filterwarnings("ignore", message=_NORM_NOTE)
        logits: Tensor = model.bridge(tokens.to(model.device, torch.long), return_type="logits")
    return logits


def _hooks_of(model: Model, part: str) -> Sequence[str]:
    """The bridge's names of the hooks that freeze a part."""
    names = [name for name, point in model.bridge.hook_dict.items() if point.name == name]
    if part == "attention":
        return attention_hooks(model)
    if part == "norms":
        return [name for name in names if name.endswith(".hook_scale")]
    if part == "mlps":
        found = [name for name in names if re.fullmatch(r"blocks\.\d+\.mlp\.hook_out", name)]
        if len(found) < model.n_layers:
            raise SaescopeError(
                f"{model.name} has {model.n_layers} blocks, but only {len(found)} have an MLP that can be frozen."
            )
        return found
    raise SaescopeError(f"freeze: {part!r} cannot be frozen; choose from {', '.join(HELD)}.")


def attention_hooks(model: Model) -> list[str]:
    """The hooks to freeze to make attention constant: patterns if the forward pass uses them, else queries and keys.

    Raises:
        SaescopeError: a block has neither.
    """
    hooks: list[str] = []
    for block, live in live_patterns(model).items():
        names = [f"{block}.hook_pattern"] if live else [f"{block}.hook_q", f"{block}.hook_k"]
        if not set(names) <= set(model.bridge.hook_dict):
            raise SaescopeError(f"{model.name}: the attention patterns of {block} cannot be frozen.")
        hooks += names
    return hooks


def live_patterns(model: Model) -> dict[str, bool]:
    """For each block's attention, whether the forward pass uses its pattern or only displays it.

    Tested once: if the pattern is set to zero, the heads' outputs must be zero.
    """
    if model not in _live:
        _live[model] = _find_live_patterns(model)
    return _live[model]


@torch.no_grad()
def _find_live_patterns(model: Model) -> dict[str, bool]:
    points = model.bridge.hook_dict
    blocks = [name.removesuffix(".hook_pattern") for name in points if name.endswith(".attn.hook_pattern")]
    live = dict.fromkeys(blocks, False)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            stack.enter_context(hooked(model.bridge, f"{block}.hook_pattern", torch.zeros_like))
            if f"{block}.hook_z" in points:
                stack.enter_context(hooked(model.bridge, f"{block}.hook_z", partial(_note_silence, live, block)))
        model.bridge(torch.arange(4, device=model.device)[None], return_type=None)
    return live
