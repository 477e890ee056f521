"""A torch module with named hooks: activations as rows, and running with activations replaced.

It is to a module of the user's own what `training.model.language_model.Model` is to a language model: where that takes
tokens, this takes the numbers of inputs (`training.model.feed`).
"""

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from sae.errors import SaescopeError, first_line
from sae.io.files import tensor_bytes
from training.model.feed import Feed, Inputs, called, load_feed, picture
from training.model.hooks import INPUTS, ModuleLocation, Replace, attach

INPUT = ".hook_in"
"""What is added to a module's path for its input."""
MAX_SIDE = 96
"""Pixels along a side of the pictures that are kept; larger ones are made smaller."""


@dataclass(frozen=True)
class Place:
    """Where a hook lies, and what a batch looks like there."""

    location: ModuleLocation
    shape: tuple[int, ...]
    """Without the axis of the batch."""

    @property
    def d(self) -> int:
        """Numbers of a row."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def n_positions(self) -> int:
        """Rows of an input."""
        return math.prod(self.shape) // self.d

    def rows(self, acts: Tensor) -> Float[Tensor, "n n_positions d"]:
        """A batch as rows."""
        if len(self.shape) == 3:
            return acts.flatten(2).transpose(1, 2)
        return acts[:, None] if len(self.shape) == 1 else acts

    def back(self, rows: Float[Tensor, "n n_positions d"]) -> Tensor:
        """Rows as the batch that the module passes on."""
        whole = (len(rows), *self.shape)
        return rows.transpose(1, 2).reshape(whole) if len(self.shape) == 3 else rows.reshape(whole)


class HookedModule:
    """A module of the user's own with named hooks; made by `load_module`.

    Attributes:
        name: `module:PACKAGE.FUNCTION`.
        identity: JSON-able; names the weights and the inputs by content.
        feed: what the function returned.
        inputs: those that are used.
        device: where it runs.
    """

    def __init__(self, name: str, feed: Feed, device: torch.device, n_inputs: int) -> None:
        """Take the first `n_inputs` inputs of the feed, or all."""
        self.name, self.feed, self.device = name, feed, device
        self.inputs = Inputs(feed, n_inputs)
        self._module = feed.module.to(device).eval().requires_grad_(False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Reads everything once."""
        return {
            "name": "module", "n_inputs": self.inputs.n,
            "weights_sha256": digest(dict(self._module.state_dict())),
            "inputs_sha256": digest([self.inputs[i] for i in range(self.inputs.n)]),
        }

    # -- hooks --------------------------------------------------------------------------------------------------------

    def hooks(self) -> dict[str, tuple[int, int]]:
        """Every hook name, with the positions of an input there and the width of a row."""
        return {name: (place.n_positions, place.d) for name, place in self._places.items()}

    def d_hook(self, hook: str) -> int:
        """Width of a hook's rows. Raises as `place`."""
        return self.place(hook).d

    def place(self, hook: str) -> Place:
        """Where a hook lies.

        Raises:
            SaescopeError: the module has no such hook, or it is run several times for an input.
        """
        if hook in self._places:
            return self._places[hook]
        if hook in self._refused:
            raise SaescopeError(f"{self.name}: {hook} cannot be a hook: {self._refused[hook]}.")
        near = difflib.get_close_matches(hook, self._places, n=3, cutoff=0.0)
        raise SaescopeError(
            f"{self.name} has no hook {hook!r}; a hook is the path of a module, or the path and {INPUT} for its input: the "
            f"nearest are {', '.join(near) or 'none'}."
        )

    def boxes(self, hook: str) -> Float32[np.ndarray, "n_positions 4"]:
        """The part of the image that each position stands for: top, left, height, width, as shares of the whole.

        The grid is that of the activations `[c, h, w]`; else the feed's; else a square of the last positions, if they are
        that many beside at most one. Without any, each position stands for the whole image.
        """
        place = self.place(hook)
        n = place.n_positions
        side = math.isqrt(n)
        guess = (side, side) if side > 1 and n - side**2 <= 1 else (0, 0)
        high, wide = place.shape[1:] if len(place.shape) == 3 else self.feed.grid or guess
        out = np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1))
        if not 0 < high * wide <= n:
            return out
        row, column = np.divmod(np.arange(high * wide), wide)
        sizes = np.ones(high * wide)
        out[n - high * wide :] = np.stack([row / high, column / wide, sizes / high, sizes / wide], axis=1)
        return out

    # -- running ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def activations(
        self, numbers: Int64[Tensor, " n"], hooks: Sequence[str], *, n_seqs_per_forward: int | None = None
    ) -> dict[str, Float[Tensor, "n n_positions _"]]:
        """Activations at several hooks for these inputs, on the module's device.

        Args:
            numbers: of the inputs.
            hooks: names from `hooks()`.
            n_seqs_per_forward: run exactly so many inputs at a time, the last group filled up, so that rounding does not
                depend on an input's company.

        Raises:
            SaescopeError: unknown hook, or the module fails.
        """
        places = {hook: self.place(hook) for hook in hooks}
        filler = numbers[-1:].expand(-len(numbers) % n_seqs_per_forward) if n_seqs_per_forward else numbers[:0]
        parts: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
        for group in torch.cat([numbers, filler]).split(n_seqs_per_forward or max(1, len(numbers))):
            with ExitStack() as stack:
                for hook, place in places.items():
                    keep = _keeper(parts[hook], place)
                    stack.callback(attach(place.location, keep).remove)
                self._run(group.tolist())
        return {hook: torch.cat(found)[: len(numbers)] for hook, found in parts.items()}

    @contextmanager
    def splice(self, hook: str, fn: Replace) -> Iterator[None]:
        """While open, the activation at `hook` is replaced by `fn` of it in every run of the module.

        Args:
            hook: a name from `hooks()`.
            fn: `[n, n_positions, d]` → the same shape and dtype.

        Raises:
            SaescopeError: unknown hook.
        """
        place = self.place(hook)
        handle = attach(place.location, lambda acts: place.back(fn(place.rows(acts))))
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logits(self, numbers: Int64[Tensor, " n"]) -> Any:
        """What the module returns for these inputs; called like a language model's output, for splices work on both."""
        return self._run(numbers.tolist())

    def _run(self, numbers: Sequence[int]) -> Any:
        batch = self.inputs.batch(numbers, self.device)
        try:
            return called(self._module, batch)
        except SaescopeError:
            raise
        except Exception as error:  # the user's own module may raise anything
            raise SaescopeError(
                f"{self.name}: the module raised {type(error).__name__} on input {numbers[0]}: {first_line(error)}."
            ) from error

    # -- pictures -----------------------------------------------------------------------------------------------------

    def images(self) -> UInt8[np.ndarray, "n height width channels"] | None:
        """The pictures of all inputs, their longer side at most `MAX_SIDE`; None where the feed draws none.

        Raises:
            SaescopeError: what is drawn is no image, or images have different sizes.
        """
        draw = self.feed.image
        if draw is None:
            return None
        what = f"{self.name}: Feed.image"
        drawn = [_small(picture(draw(self.inputs[i]), f"{what} of input {i}")) for i in range(self.inputs.n)]
        if len({one.shape for one in drawn}) > 1:
            raise SaescopeError(f"{self.name}: Feed.image draws images of several sizes; draw all in one.")
        return np.stack(drawn)

    def drawn(self, output: Any, what: str) -> UInt8[np.ndarray, "height width channels"] | dict[str, float]:
        """One output of the module as the feed draws it.

        Raises:
            SaescopeError: neither an image nor numbers by name.
        """
        value = output if self.feed.output is None else self.feed.output(output)
        if isinstance(value, Mapping):
            return {str(key): float(number) for key, number in value.items()}
        if self.feed.output is None and not (isinstance(value, Tensor) and value.ndim in (2, 3)):
            raise SaescopeError(f"{self.name}: without Feed.output nobody knows how to show what the module returns.")
        return picture(value, what)

    # -- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _probed(self) -> tuple[dict[str, Place], dict[str, str]]:
        """The hooks, and why other modules are none; by one forward pass of two inputs."""
        seen: dict[str, list[Any]] = {}
        paths = {path: module for path, module in self._module.named_modules() if path}
        with ExitStack() as stack:
            for path, module in paths.items():
                stack.callback(module.register_forward_pre_hook(_seeing(seen, path + INPUT), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(_seeing_output(seen, path)).remove)
            with torch.no_grad():
                self._run([0, min(1, self.inputs.n - 1)])
        places, refused = {}, {}
        for hook in (name for path in paths for name in (path, path + INPUT)):
            found, module = seen.get(hook, []), paths[hook.removesuffix(INPUT)]
            if len(found) != 1:
                refused[hook] = f"the module is run {len(found)} times for an input"
            elif not (isinstance(found[0], Tensor) and found[0].is_floating_point() and found[0].ndim in (2, 3, 4)):
                refused[hook] = "there is no tensor of two, three or four axes"
            elif len(found[0]) != 2:
                refused[hook] = "the first axis there is not the batch's"
            else:
                shape = tuple(found[0].shape[1:])
                is_input = hook.endswith(INPUT)
                places[hook] = Place(ModuleLocation(module, is_input, shape, None), shape)
        return places, refused

    @property
    def _places(self) -> dict[str, Place]:
        return self._probed[0]

    @property
    def _refused(self) -> dict[str, str]:
        return self._probed[1]


def load_module(source: str, *, device: str | torch.device = "cpu", n_inputs: int) -> HookedModule:
    """Import the user's function, call it, and look at the module it returns.

    Args:
        source: `module:PACKAGE.FUNCTION`.
        device: where the module runs.
        n_inputs: how many inputs are taken at most.

    Raises:
        SaescopeError: as `training.model.feed.load_feed`.
    """
    return HookedModule(source, load_feed(source), torch.device(device), n_inputs)


def _keeper(found: list[Tensor], place: Place) -> Callable[[Tensor], None]:
    def keep(acts: Tensor) -> None:
        if tuple(acts.shape[1:]) != place.shape:
            raise SaescopeError(
                f"Feed.inputs give activations of shape {list(acts.shape[1:])} and {list(place.shape)} at one hook; every "
                "input must have the same shape."
            )
        found.append(place.rows(acts).clone())

    return keep


def _seeing(seen: dict[str, list[Any]], hook: str) -> Callable[..., None]:
    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else next((kwargs[key] for key in INPUTS if key in kwargs), None)
        seen.setdefault(hook, []).append(first)

    return see


def _seeing_output(seen: dict[str, list[Any]], hook: str) -> Callable[..., None]:
    def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        seen.setdefault(hook, []).append(output[0] if isinstance(output, tuple) and output else output)

    return see


def _small(image: UInt8[np.ndarray, "_ _ channels"]) -> UInt8[np.ndarray, "_ _ channels"]:
    """An image whose longer side is at most `MAX_SIDE`: means over areas."""
    high, wide, _ = image.shape
    if max(high, wide) <= MAX_SIDE:
        return image
    size = [max(1, round(side * MAX_SIDE / max(high, wide))) for side in (high, wide)]
    area = nn.functional.interpolate(torch.from_numpy(image).float().permute(2, 0, 1)[None], size=size, mode="area")
    return area[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def digest(value: Any) -> str:
    """The sha256 of all tensors of a nest, with their types and shapes."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in sorted(part, key=str):
                total.update(str(key).encode())
                add(part[key])
        elif isinstance(part, tuple | list):
            for one in part:
                add(one)
        else:
            tensor = torch.as_tensor(part).detach().cpu().contiguous()
            total.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor_bytes(tensor))

    add(value)
    return total.hexdigest()
