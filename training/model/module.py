"""A user's torch module with named hooks: reading activations as rows, and replacing activations.

The counterpart of `training.model.language_model.Model` for user modules: instead of tokens it takes indices of inputs
(`training.model.feed`).
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
"""Suffix of a module's path for its input."""
MAX_SIDE = 96
"""Maximum side of stored images in pixels; larger ones are downscaled."""


@dataclass(frozen=True)
class Place:
    """The location of a hook, and the shape of activations there."""

    location: ModuleLocation
    shape: tuple[int, ...]
    """Without the batch axis."""

    @property
    def d(self) -> int:
        """Width of a row."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def n_positions(self) -> int:
        """Rows per input."""
        return math.prod(self.shape) // self.d

    def rows(self, acts: Tensor) -> Float[Tensor, "n n_positions d"]:
        """Convert a batch of activations to rows."""
        if len(self.shape) == 3:
            return acts.flatten(2).transpose(1, 2)
        return acts[:, None] if len(self.shape) == 1 else acts

    def back(self, rows: Float[Tensor, "n n_positions d"]) -> Tensor:
        """Convert rows back to a batch of activations."""
        whole = (len(rows), *self.shape)
        return rows.transpose(1, 2).reshape(whole) if len(self.shape) == 3 else rows.reshape(whole)


class HookedModule:
    """A user's module with named hooks; created by `load_module`.

    Attributes:
        name: `module:PACKAGE.FUNCTION`.
        identity: JSON-able; identifies weights and inputs by content.
        feed: the `Feed` returned by the function.
        inputs: the inputs used.
        device: its device.
    """

    def __init__(self, name: str, feed: Feed, device: torch.device, n_inputs: int) -> None:
        """Use the first `n_inputs` inputs of the feed, or all if there are fewer."""
        self.name, self.feed, self.device = name, feed, device
        self.inputs = Inputs(feed, n_inputs)
        self._module = feed.module.to(device).eval().requires_grad_(False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Hashes of weights and inputs; reads everything once."""
        return {
            "name": "module", "n_inputs": self.inputs.n,
            "weights_sha256": digest(dict(self._module.state_dict())),
            "inputs_sha256": digest([self.inputs[i] for i in range(self.inputs.n)]),
        }

    # -- hooks --------------------------------------------------------------------------------------------------------

    def hooks(self) -> dict[str, tuple[int, int]]:
        """Every hook name, with its positions per input and its row width."""
        return {name: (place.n_positions, place.d) for name, place in self._places.items()}

    def d_hook(self, hook: str) -> int:
        """Row width of a hook. Raises like `place`."""
        return self.place(hook).d

    def place(self, hook: str) -> Place:
        """The place of a hook.

        Raises:
            SaescopeError: the module has no such hook, or it cannot be used as one.
        """
        if hook in self._places:
            return self._places[hook]
        if hook in self._refused:
            raise SaescopeError(f"{self.name}: {hook} cannot be used as a hook: {self._refused[hook]}.")
        near = difflib.get_close_matches(hook, self._places, n=3, cutoff=0.0)
        raise SaescopeError(
            f"{self.name} has no hook {hook!r}; a hook is a submodule's path, or the path with {INPUT} for its input; the "
            f"nearest are {', '.join(near) or 'none'}."
        )

    def boxes(self, hook: str) -> Float32[np.ndarray, "n_positions 4"]:
        """The image patch of each position: top, left, height, width, as fractions of the image.

        The grid is taken from activations `[c, h, w]`; else from the feed; else it is a square of the last positions, if
        there are that many or one more. Without a grid each position covers the whole image.
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
            numbers: indices of the inputs.
            hooks: names from `hooks()`.
            n_seqs_per_forward: run exactly this many inputs at a time, padding the last group, so that rounding doesn't
                depend on the batch an input is in.

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
        """Context in which `fn` replaces the activation at `hook` in every run of the module.

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
        """The module's output for these inputs; named like a language model's output, since splices work on both."""
        return self._run(numbers.tolist())

    def _run(self, numbers: Sequence[int]) -> Any:
        batch = self.inputs.batch(numbers, self.device)
        try:
            return called(self._module, batch)
        except SaescopeError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise SaescopeError(
                f"{self.name}: the module raised {type(error).__name__} on input {numbers[0]}: {first_line(error)}."
            ) from error

    # -- pictures -----------------------------------------------------------------------------------------------------

    def images(self) -> UInt8[np.ndarray, "n height width channels"] | None:
        """The images of all inputs, with sides of at most `MAX_SIDE`; None if the feed has no images.

        Raises:
            SaescopeError: Feed.image doesn't return an image, or images have different sizes.
        """
        draw = self.feed.image
        if draw is None:
            return None
        what = f"{self.name}: Feed.image"
        drawn = [_small(picture(draw(self.inputs[i]), f"{what} of input {i}")) for i in range(self.inputs.n)]
        if len({one.shape for one in drawn}) > 1:
            raise SaescopeError(f"{self.name}: Feed.image returns images of different sizes; all must have the same.")
        return np.stack(drawn)

    def drawn(self, output: Any, what: str) -> UInt8[np.ndarray, "height width channels"] | dict[str, float]:
        """One output of the module, converted by `Feed.output` for display.

        Raises:
            SaescopeError: the result is neither an image nor numbers by name.
        """
        value = output if self.feed.output is None else self.feed.output(output)
        if isinstance(value, Mapping):
            return {str(key): float(number) for key, number in value.items()}
        if self.feed.output is None and not (isinstance(value, Tensor) and value.ndim in (2, 3)):
            raise SaescopeError(f"{self.name}: set Feed.output to show the module's output, which is not an image.")
        return picture(value, what)

    # -- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _probed(self) -> tuple[dict[str, Place], dict[str, str]]:
        """The hooks, and why other submodules cannot be hooks; found by one forward pass on two inputs."""
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
                refused[hook] = f"the module is run {len(found)} times per input"
            elif not (isinstance(found[0], Tensor) and found[0].is_floating_point() and found[0].ndim in (2, 3, 4)):
                refused[hook] = "it is not a float tensor with two, three or four axes"
            elif len(found[0]) != 2:
                refused[hook] = "its first axis is not the batch"
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
    """Import the user's function, call it, and wrap the module it returns.

    Args:
        source: `module:PACKAGE.FUNCTION`.
        device: device of the module.
        n_inputs: maximum number of inputs to use.

    Raises:
        SaescopeError: as `training.model.feed.load_feed`.
    """
    return HookedModule(source, load_feed(source), torch.device(device), n_inputs)


def _keeper(found: list[Tensor], place: Place) -> Callable[[Tensor], None]:
    def keep(acts: Tensor) -> None:
        if tuple(acts.shape[1:]) != place.shape:
            raise SaescopeError(
                f"Feed.inputs give activations of shapes {list(acts.shape[1:])} and {list(place.shape)} at the same hook; "
                "all inputs must have the same shape."
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
    """Downscale an image to sides of at most `MAX_SIDE`, by area averaging."""
    high, wide, _ = image.shape
    if max(high, wide) <= MAX_SIDE:
        return image
    size = [max(1, round(side * MAX_SIDE / max(high, wide))) for side in (high, wide)]
    area = nn.functional.interpolate(torch.from_numpy(image).float().permute(2, 0, 1)[None], size=size, mode="area")
    return area[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def digest(value: Any) -> str:
    """The sha256 of all tensors in nested containers, with their dtypes and shapes."""
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
