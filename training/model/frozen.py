"""The linear forward: a model whose attention patterns, norm scales and MLP outputs are held at their clean values.

With all three held, everything between two points of the residual stream is linear: attention moves values by constant
weights, norms divide by constants, MLPs add constants (or a spliced transcoder stands in their place). So a gradient is
an effect, whatever its size: the setting of attribution graphs (Ameisen et al. 2025). It runs over the
TransformerBridge, with eager attention and every hook that TransformerLens has.

    attention   hook_pattern; where an architecture computes attention in one piece (GPT-J), its queries and keys
    norms       hook_scale of every norm, those after a sublayer and those of queries and keys too
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
"""What can be held."""
_NORM_NOTE = r"A forward hook edited hook_scale|Backward hooks on hook_scale"
_live: "weakref.WeakKeyDictionary[Model, dict[str, bool]]" = weakref.WeakKeyDictionary()


class FrozenModel:
    """A model run over its bridge with some of it held at recorded values; spliced and called as a `Model` is.

    Attributes:
        model: the model.
        held: hook → the value that every run has there, without gradient.
        shape: (n_seqs, n_ctx) of the clean run.
    """

    def __init__(self, model: Model, held: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.model, self.held, self.shape = model, dict(held), shape
        self._live = live_patterns(model)

    @classmethod
    def at(cls, model: Model, tokens: Int[Tensor, "n_seqs n_ctx"], freeze: Iterable[str] = HELD) -> "FrozenModel":
        """The model as it is linear around a clean run of these tokens.

        Args:
            model: any model.
            tokens: of the clean run; later runs have as many, or this is one sequence and they are its repeats.
            freeze: any of `HELD`; none gives the bridge's own forward.

        Raises:
            SaescopeError: something else is to be held, or this architecture has no hook for it.
        """
        names = [name for part in freeze for name in _hooks_of(model, part)]
        found: dict[str, Tensor] = {}
        with torch.no_grad(), ExitStack() as stack:
            for name in names:
                stack.enter_context(hooked(model.bridge, name, partial(found.__setitem__, name)))
            _run(model, tokens)
        return cls(model, found, (tokens.shape[0], tokens.shape[1]))

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits; a graph is kept only if a splice brings one.

        Raises:
            SaescopeError: tokens of another shape than the values that are held.
        """
        if self.held and (self.shape[0] not in (1, len(tokens)) or tokens.shape[1] != self.shape[1]):
            raise SaescopeError(
                f"Held values are those of tokens {list(self.shape)}, and this run has {list(tokens.shape)}: freeze the "
                "model at tokens of this shape."
            )
        with ExitStack() as stack:
            for name, value in self.held.items():
                # before whatever else hooks in there, so that a splice can take the held value's place
                stack.enter_context(hooked(self.model.bridge, name, partial(_held, value), first=True))
            return _run(self.model, tokens)

    @contextmanager
    def splice(self, hook: str, fn: Replace) -> Iterator[None]:
        """While open, the activation at `hook` is replaced by `fn` of it in every run: `Model.splice` over the bridge.

        At `hook_resid_mid` the skip connection sees the replacement too, which the bridge by itself does not do.

        Args:
            hook: a name from `model.hooks()`, or one head; or any other of the bridge, whose activation comes unflattened.
            fn: activation → its replacement, of the same shape and dtype.

        Raises:
            SaescopeError: there is no such hook, or what it shows takes no part in the forward.
        """
        bridge = self.model.bridge
        name = re.sub(r"\[\d+\]$", "", hook)
        if name not in self.model.hooks() and name in bridge.hook_dict:
            self._refuse_decoration(name)
            with hooked(bridge, name, fn):
                yield
            return
        self.model.d_hook(hook)  # refuses a hook that there is not
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
                # first: the block's output is not whole before
                stack.enter_context(hooked(bridge, out, lambda acts: acts + change.pop(), first=True))
            yield


    def _refuse_decoration(self, name: str) -> None:
        """Patterns and scores that the bridge shows behind an attention that is computed in one piece."""
        block, _, end = name.rpartition(".")
        if end in ("hook_pattern", "hook_attn_scores") and not self._live.get(block):
            raise SaescopeError(
                f"{name} of {self.model.name} takes no part in its forward: TransformerLens runs this attention in one "
                f"piece; {block}.hook_q, hook_k, hook_v and hook_z do take part."
            )


def _held(value: Tensor, acts: Tensor) -> Tensor:
    return value.expand(acts.shape)


def _note_silence(silent: dict[str, bool], block: str, z: Tensor) -> None:
    silent[block] = not bool(z.any())


@contextmanager
def hooked(bridge: Any, name: str, fn: Callable[[Tensor], Tensor | None], *, first: bool = False) -> Iterator[None]:
    """While open, `fn` is called with what the bridge has at a hook; a tensor that it returns replaces it."""
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
        # that a norm with a held scale is computed anew, and rounds differently, is what is asked for
        warnings.filterwarnings("ignore", message=_NORM_NOTE)
        logits: Tensor = model.bridge(tokens.to(model.device, torch.long), return_type="logits")
    return logits


def _hooks_of(model: Model, part: str) -> Sequence[str]:
    """The bridge's own names of the hooks at which a part is held."""
    names = [name for name, point in model.bridge.hook_dict.items() if point.name == name]
    if part == "attention":
        return attention_hooks(model)
    if part == "norms":
        return [name for name in names if name.endswith(".hook_scale")]
    if part == "mlps":
        found = [name for name in names if re.fullmatch(r"blocks\.\d+\.mlp\.hook_out", name)]
        if len(found) < model.n_layers:
            raise SaescopeError(
                f"{model.name} has {model.n_layers} blocks and {len(found)} of them an MLP that can be held."
            )
        return found
    raise SaescopeError(f"freeze: {part!r} cannot be held; {', '.join(HELD)} can.")


def attention_hooks(model: Model) -> list[str]:
    """The hooks that, held, make attention constant: patterns where they take part in the forward, else queries and keys.

    Raises:
        SaescopeError: a block has neither.
    """
    hooks: list[str] = []
    for block, live in live_patterns(model).items():
        names = [f"{block}.hook_pattern"] if live else [f"{block}.hook_q", f"{block}.hook_k"]
        if not set(names) <= set(model.bridge.hook_dict):
            raise SaescopeError(f"{model.name}: the attention patterns of {block} cannot be held.")
        hooks += names
    return hooks


def live_patterns(model: Model) -> dict[str, bool]:
    """Each block's attention, and whether its pattern is read by what follows rather than only shown.

    Found by value, once: a pattern set to zero must make the heads' outputs zero.
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
