"""A user's torch module and its inputs, given in a config as `module:PACKAGE.FUNCTION`.

The function takes no arguments and returns a `Feed`. Rows are the activations inside the module when it runs on each input.
Hooks are submodule paths, as in `module.named_modules()`: `blocks.1` is the output of that submodule, `blocks.1.hook_in`
its input. Each input is one sequence; its positions depend on the shape of a hook's activations:

    [n, d]          1 position
    [n, p, d]       p positions
    [n, c, h, w]    h · w positions, in row-major order, with rows of width c

The function is user code: opening a run that names it imports and calls it.
"""

import difflib
import importlib
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from sae.errors import SaescopeError, first_line

PREFIX = "module:"


@dataclass(frozen=True)
class Feed:
    """A module and its inputs: everything Saescope needs to know about them.

    Attributes:
        module: a `torch.nn.Module`, run in eval mode, without gradients, in its own precision.
        inputs: the module's inputs, one per sequence: a tensor `[n, …]`, anything with a length and indexing (a torch
            `Dataset`), or an iterable, of which as many are used as `corpus.n_tokens` needs. An input is a tensor, a tuple
            (positional arguments) or a dict (keyword arguments), without the batch axis. Input i must always be the same:
            any noise must be part of the input.
        documents: the document number of each input, such as the photograph that it was cropped from. Whole documents are
            held out, and intervals are over documents. None: each input is its own document.
        names: the name of each input, shown next to its image.
        image: converts an input to an image: `[h, w]`, `[h, w, 3]`, `[1, h, w]` or `[3, h, w]`, floats from 0 to 1 or
            uint8. With it, the dashboard shows images as contexts.
        grid: rows and columns of positions over the image, if a hook's shape doesn't imply them (patches of a vision
            transformer). Positions before the grid (class tokens) cover the whole image.
        output: converts the module's output for one input to an image as above, or to numbers by name (such as classes),
            for display when steering. None: the output itself, if it is an image.
        batch: inputs per forward pass.
    """

    module: Any  # checked below: it comes from the user's function
    inputs: Any
    documents: Sequence[int] | None = None
    names: Sequence[str] | None = None
    image: Callable[[Any], Any] | None = None
    grid: tuple[int, int] | None = None
    output: Callable[[Any], Any] | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            SaescopeError: a field of the wrong type.
        """
        if not isinstance(self.module, nn.Module):
            raise SaescopeError(f"Feed.module is a {type(self.module).__name__}; it must be a torch.nn.Module.")
        if isinstance(self.inputs, str) or not (hasattr(self.inputs, "__getitem__") or hasattr(self.inputs, "__iter__")):
            raise SaescopeError(f"Feed.inputs is a {type(self.inputs).__name__}, not a tensor, a Dataset or an iterable.")
        for name in ("image", "output"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise SaescopeError(f"Feed.{name} is a {type(value).__name__}; it must be a function.")
        if not isinstance(self.batch, int) or self.batch < 1:
            raise SaescopeError(f"Feed.batch = {self.batch!r}; it must be a positive integer.")


class Inputs:
    """The first inputs of a feed, by index."""

    def __init__(self, feed: Feed, limit: int) -> None:
        """Take at most `limit` inputs.

        Raises:
            SaescopeError: there are none, or `documents` or `names` are shorter than the inputs.
        """
        inputs = feed.inputs
        if not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
            inputs = list(itertools.islice(inputs, limit))
        self.items, self.n = inputs, min(limit, len(inputs))
        if not self.n:
            raise SaescopeError("Feed.inputs is empty.")
        for name in ("documents", "names"):
            given = getattr(feed, name)
            if given is not None and len(given) < self.n:
                raise SaescopeError(f"Feed.{name} has {len(given):,} entries for {self.n:,} inputs; give one per input.")

    def __getitem__(self, number: int) -> Any:
        """One input."""
        return self.items[number]

    def batch(self, numbers: Sequence[int], device: torch.device | str = "cpu") -> Any:
        """Stack several inputs into a batch; every tensor gets a leading batch axis."""
        return _stacked([self.items[number] for number in numbers], torch.device(device))


def _stacked(items: Sequence[Any], device: torch.device) -> Any:
    first = items[0]
    if isinstance(first, Mapping):
        return {key: _stacked([item[key] for item in items], device) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_stacked(list(parts), device) for parts in zip(*items, strict=True))
    tensors = [torch.as_tensor(item) for item in items]
    if any(one.shape != tensors[0].shape for one in tensors):
        raise SaescopeError(
            f"Feed.inputs have different shapes ({list(tensors[0].shape)} and others); all must have the same shape."
        )
    return torch.stack(tensors).to(device)


def called(module: nn.Module, batch: Any) -> Any:
    """Call a module on a batch of inputs."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, tuple) else module(batch)


def picture(value: Any, what: str) -> UInt8[np.ndarray, "height width channels"]:
    """Convert an image to uint8, with 1 or 3 channels last.

    Args:
        value: in one of the forms of `Feed.image`.
        what: what to call it in messages.

    Raises:
        SaescopeError: not an image.
    """
    array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) and value.is_floating_point() else value
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape or array.dtype.kind not in "fu":
        raise SaescopeError(
            f"{what} is {array.dtype} of shape {list(array.shape)}; an image must be [h, w] or [h, w, 3], floats from 0 to "
            "1 or uint8."
        )
    if array.dtype.kind == "f":
        array = np.nan_to_num(np.clip(array, 0, 1) * 255).round()
    return np.ascontiguousarray(array.astype(np.uint8))


def load_feed(source: str) -> Feed:
    """Import the function of `module:PACKAGE.FUNCTION` and call it.

    Modules in the working directory are found, too.

    Raises:
        SaescopeError: no such module or function, an error in either, or it doesn't return a `Feed`.
    """
    path = source.removeprefix(PREFIX)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
        raise SaescopeError(f"{source}: use module:PACKAGE.FUNCTION, for example module:my_vision.digits.")
    package, _, name = path.rpartition(".")
    function = _function(source, package, name)
    if not callable(function):
        raise SaescopeError(f"{source}: {name} is a {type(function).__name__}, not a function.")
    try:
        feed = function()
    except SaescopeError as error:
        raise SaescopeError(f"{source}: {error}") from None
    except Exception as error:  # user code may raise anything
        raise SaescopeError(f"{source} raised {_where(error)}.") from error
    if not isinstance(feed, Feed):
        raise SaescopeError(f"{source} returned a {type(feed).__name__}; it must return a training.Feed(module, inputs).")
    return feed


def _function(source: str, package: str, name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
            raise SaescopeError(
                f"{source}: Python cannot find the module {error.name}; run the command from the folder that contains it "
                f"(now {here}), or install it."
            ) from None
        raise SaescopeError(f"{source}: importing {package} raised {_where(error)}.") from error
    except Exception as error:  # as above
        raise SaescopeError(f"{source}: importing {package} raised {_where(error)}.") from error
    finally:
        if added:
            sys.path.remove(here)
    if not hasattr(found, name):
        near = difflib.get_close_matches(name, [key for key in vars(found) if not key.startswith("_")], n=1)
        raise SaescopeError(f"{source}: {package} has no {name}{f'; did you mean {near[0]}?' if near else '.'}")
    return getattr(found, name)


def _where(error: Exception) -> str:
    """The error and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"
