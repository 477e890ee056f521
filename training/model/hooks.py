"""Map hooks to modules of a Hugging Face network, and read and write activations there.

The `TransformerBridge` tells which module corresponds to a hook. The mapping is only used if a short forward pass through
both gives equal values: see `find_locations`.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.model.native import root_of

_PROBE_SEQS = 2
# Two correct attention kernels in bf16 differ by far less than this, two unrelated tensors by far more.
_PROBE_TOLERANCE = 0.1

INPUTS = ("hidden_states", "input", "x", "inputs_embeds")
"""Argument names of modules' inputs, if passed by keyword."""

Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ModuleLocation:
    """The location of a hook in the Hugging Face module tree.

    Attributes:
        module: the module whose input or output it is.
        is_input: whether it is the input; else the output.
        shape: shape of one token's activation in TransformerLens, (576,) or (9, 64).
        block: for `hook_resid_mid`, the block, whose skip connection carries the same tensor past the module.
    """

    module: nn.Module
    is_input: bool
    shape: tuple[int, ...]
    block: nn.Module | None


def attach(location: ModuleLocation, fn: Callable[[Tensor], Tensor | None], *, first: bool = False) -> Any:
    """Call `fn` with the flattened activation at a location in each forward pass; a returned tensor replaces it.

    `first`: call it before hooks that were attached earlier.
    """

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        if args and isinstance(args[0], Tensor):
            new = fn(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next(k for k in INPUTS if isinstance(kwargs.get(k), Tensor))
        new = fn(kwargs[key])
        return None if new is None else (args, {**kwargs, key: new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
        first = output[0] if isinstance(output, tuple) else output
        new = fn(first)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if location.is_input:
        return location.module.register_forward_pre_hook(on_input, with_kwargs=True, prepend=first)
    return location.module.register_forward_hook(on_output, prepend=first)


def replaced(acts: Tensor, taken: slice, fn: Replace) -> Tensor:
    """Replace the columns `taken` of `acts` by `fn` of them."""
    new = fn(acts[..., taken])
    if taken == slice(None):
        return new
    return torch.cat([acts[..., : taken.start], new, acts[..., taken.stop :]], dim=-1)


def once(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a block's forward to cache the result for its first input; other inputs are computed as usual."""
    kept: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())
        if not kept:
            kept.extend((hidden, forward(*args, **kwargs)))
        elif hidden.shape != kept[0].shape or not torch.equal(hidden, kept[0]):
            return forward(*args, **kwargs)
        return kept[1]

    return run


def find_locations(bridge: Any, network: nn.Module, device: torch.device) -> dict[str, ModuleLocation]:
    """Find all bridge hooks that are the input or output of a module of `network`, verified by value.

    Runs one short forward pass through each; a hook is kept if the module's value equals the bridge's up to rounding.
    """
    root = root_of(network)
    n_ctx = _probe_length(bridge.cfg)
    tokens = (torch.arange(_PROBE_SEQS * n_ctx, device=device) % bridge.cfg.d_vocab).view(_PROBE_SEQS, n_ctx)
    points = {id(point): name for name, point in bridge.hook_dict.items() if point.name == name}
    places = {name: place for name in points.values() if (place := module_of(bridge, root, name)) is not None}
    expected = _read_bridge(bridge, list(places), tokens)
    locations = {
        name: ModuleLocation(*places[name], shape=tuple(value.shape[2:]), block=None) for name, value in expected.items()
    }
    found = _read_network(network, locations, tokens)
    locations = {n: location for n, location in locations.items() if n in found and _agree(found[n], expected[n])}
    named: dict[str, ModuleLocation] = {}
    for name, point in bridge.hook_dict.items():
        location = locations.get(points.get(id(point), ""))
        if location is not None:
            named[name] = _with_skip(name, location, bridge, root)
    return named


def _probe_length(cfg: Any) -> int:
    """A sequence length that differs from the numbers of heads and sequences, so that axes can be told apart by size."""
    taken = {_PROBE_SEQS, cfg.n_heads, getattr(cfg, "n_key_value_heads", None), cfg.d_head}
    return next(n for n in range(5, 16) if n not in taken)


def module_of(bridge: Any, root: nn.Module, hook: str) -> tuple[nn.Module, bool] | None:
    """The network module of a canonical hook name, and whether the hook is its input (True) or output (False)."""
    owner, _, end = hook.rpartition(".")
    if end not in ("hook_in", "hook_out") or not owner:
        return None
    component = bridge.get_submodule(owner)
    path = bridge.saescope_paths.get(id(getattr(component, "original_component", None)))
    return None if path is None else (root.get_submodule(path), end == "hook_in")


@torch.no_grad()
def _read_bridge(bridge: Any, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """The floating-point values `[n_seqs, n_ctx, ...]` at the bridge's hooks."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def read(value: Any, hook: Any) -> None:  # noqa: ARG001 (the bridge passes it by name)
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == tokens.shape:
                found.setdefault(name, value.detach().clone())

        return read

    with warnings.catch_warnings(), bridge.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        warnings.simplefilter("ignore")
        bridge(tokens, return_type=None)
    return {name: value for name, value in found.items() if value.ndim in (3, 4)}


@torch.no_grad()
def _read_network(network: nn.Module, locations: dict[str, ModuleLocation], tokens: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda acts: found.__setitem__(name, acts.clone())

    with ExitStack() as stack:
        for name, location in locations.items():
            stack.callback(attach(location, keep(name)).remove)
        network(input_ids=tokens, use_cache=False)
    return found


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.numel() != expected.numel():
        return False
    found, expected = found.float().flatten(), expected.float().flatten()
    # ignore NaN, so that broken weights don't hide hooks; reading the activations reports them
    finite = found.isfinite() & expected.isfinite()
    found, expected = found[finite], expected[finite]
    return bool((found - expected).norm() <= _PROBE_TOLERANCE * expected.norm())


def _with_skip(name: str, location: ModuleLocation, bridge: Any, root: nn.Module) -> ModuleLocation:
    """Add the block to `hook_resid_mid`, which is read by the MLP branch and by the block's skip connection."""
    if not name.endswith(".hook_resid_mid"):
        return location
    place = module_of(bridge, root, name.removesuffix("hook_resid_mid") + "hook_out")
    assert place is not None
    return ModuleLocation(location.module, location.is_input, location.shape, block=place[0])
