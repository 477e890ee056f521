"""A torch module of the user's own and what it is fed, named in a config as `module:PACKAGE.FUNCTION`.

The function takes nothing and returns a `Feed`. The rows are the activations inside the module while it runs on each
input; hooks are paths of modules, as `module.named_modules()` spells them: `blocks.1` is the output of that module,
`blocks.1.hook_in` its input. Each input is one sequence, whose positions are

    [n, d]          one
    [n, p, d]       p
    [n, c, h, w]    h · w, row by row, each a row of c numbers

The function is the user's code: opening a run that names it imports and calls it.
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
    """A module and its inputs; all that Saescope has to know of them.

    Attributes:
        module: a `torch.nn.Module`, run in evaluation mode, without gradients, in its own precision.
        inputs: what it is called with, one a sequence: a tensor `[n, …]`, anything with a length and numbers (a torch
            `Dataset`), or an iterable, of which as many are taken as `corpus.n_tokens` asks for. An input is a tensor, a
            tuple (positional arguments) or a dict (keyword arguments), without the axis of the batch. Input i must always
            be the same: noise belongs into the input.
        documents: of each input the number of what it was made from, such as the photograph that it is a crop of. Documents
            are held out whole, and intervals are over them. None: each input is its own.
        names: of each input what it is called beside its picture.
        image: draws an input: `[h, w]`, `[h, w, 3]`, `[1, h, w]` or `[3, h, w]`, floats from 0 to 1 or uint8. With it the
            dashboard shows images as contexts.
        grid: rows and columns of the positions over the image, where a hook's shape does not tell (patches of a vision
            transformer). Positions before the grid (class tokens) stand for the whole image.
        output: draws what the module returns for one input: an image as above, or numbers by name (of classes, say), so
            that steering has something to show. None: the output itself, if it is an image.
        batch: inputs of one forward pass.
    """

    module: Any  # looked at below: the user's own function gives it
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
            SaescopeError: a field that is not what it should be.
        """
        if not isinstance(self.module, nn.Module):
            raise SaescopeError(f"Feed.module is a {type(self.module).__name__}; give a torch.nn.Module.")
        if isinstance(self.inputs, str) or not (hasattr(self.inputs, "__getitem__") or hasattr(self.inputs, "__iter__")):
            raise SaescopeError(f"Feed.inputs is a {type(self.inputs).__name__}; give a tensor, a Dataset or an iterable.")
        for name in ("image", "output"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise SaescopeError(f"Feed.{name} is a {type(value).__name__}; give a function.")
        if not isinstance(self.batch, int) or self.batch < 1:
            raise SaescopeError(f"Feed.batch = {self.batch!r}; give a number of inputs above 0.")


class Inputs:
    """The first inputs of a feed, by number."""

    def __init__(self, feed: Feed, limit: int) -> None:
        """Take at most `limit`.

        Raises:
            SaescopeError: there are none, or `documents` or `names` are not one for each.
        """
        inputs = feed.inputs
        if not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
            inputs = list(itertools.islice(inputs, limit))
        self.items, self.n = inputs, min(limit, len(inputs))
        if not self.n:
            raise SaescopeError("Feed.inputs has no input.")
        for name in ("documents", "names"):
            given = getattr(feed, name)
            if given is not None and len(given) < self.n:
                raise SaescopeError(f"Feed.{name} has {len(given):,} entries for {self.n:,} inputs; give one for each.")

    def __getitem__(self, number: int) -> Any:
        """One input."""
        return self.items[number]

    def batch(self, numbers: Sequence[int], device: torch.device | str = "cpu") -> Any:
        """Several inputs as one batch, each of its tensors with the axis of the batch in front."""
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
            f"Feed.inputs have different shapes ({list(tensors[0].shape)} and others); every input must have the same."
        )
    return torch.stack(tensors).to(device)


def called(module: nn.Module, batch: Any) -> Any:
    """What a module returns for a batch of inputs."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, tuple) else module(batch)


def picture(value: Any, what: str) -> UInt8[np.ndarray, "height width channels"]:
    """An image as uint8, with 1 or 3 channels, the last axis.

    Args:
        value: as of `Feed.image`.
        what: of it, for messages.

    Raises:
        SaescopeError: something else.
    """
    array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) and value.is_floating_point() else value
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape or array.dtype.kind not in "fu":
        raise SaescopeError(
            f"{what} is {array.dtype} of shape {list(array.shape)}; an image is [h, w] or [h, w, 3], floats from 0 to 1 or "
            "uint8."
        )
    if array.dtype.kind == "f":
        array = np.nan_to_num(np.clip(array, 0, 1) * 255).round()
    return np.ascontiguousarray(array.astype(np.uint8))


def load_feed(source: str) -> Feed:
    """Import the function that `module:PACKAGE.FUNCTION` names, and call it.

    Modules beside the folder that the command is called from are found, too.

    Raises:
        SaescopeError: no such module or function, an error in either, or something else than a `Feed` is returned.
    """
    path = source.removeprefix(PREFIX)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
        raise SaescopeError(f"{source}: write module:PACKAGE.FUNCTION, for example module:my_vision.digits.")
    package, _, name = path.rpartition(".")
    function = _function(source, package, name)
    if not callable(function):
        raise SaescopeError(f"{source}: {name} is a {type(function).__name__}, not a function.")
    try:
        feed = function()
    except SaescopeError as error:
        raise SaescopeError(f"{source}: {error}") from None
    except Exception as error:  # the user's own code may raise anything
        raise SaescopeError(f"{source} raised {_where(error)}.") from error
    if not isinstance(feed, Feed):
        raise SaescopeError(f"{source} returned a {type(feed).__name__}; it has to return a training.Feed(module, inputs).")
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
                f"{source}: Python finds no module {error.name}; call the command from the folder that holds it ({here} is "
                "the one now), or install it."
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
    """What was raised, and the line that did."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"
