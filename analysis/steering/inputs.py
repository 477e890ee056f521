"""Steer the user's own module: its output for one input with features edited, next to the baseline.

Edits are those of `analysis.steering.generate`, at all or some positions of the input. The user's functions draw input
and outputs (`training.model.feed.Feed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from analysis.steering.generate import Edit, checked
from analysis.trained import LOCK, open_trained
from sae.errors import SaescopeError
from sae.torch_state import own_torch_state
from training.model import edits as splice
from training.model.feed import picture
from training.model.splice import SplicedModel

Drawn = UInt8[np.ndarray, "height width channels"] | dict[str, float]
"""An image, or numbers by name."""
Positions = Literal["all"] | Sequence[int]


@dataclass(frozen=True)
class SteeredInput:
    """The module's outputs for one input, without and with the edits."""

    number: int
    image: UInt8[np.ndarray, "height width channels"] | None
    """The input as an image, if the feed can draw it."""
    baseline: Drawn
    steered: Drawn
    edits: Sequence[Edit]
    positions: Positions
    change: float
    """‖steered − baseline‖ / ‖baseline‖ of the module's output."""


@own_torch_state()
def steer_input(run: str | Path, number: int, edits: Sequence[Edit], positions: Positions = "all") -> SteeredInput:
    """Run one input without and with edits.

    Args:
        run: the folder of a run trained on `corpus.sources=module:…`.
        number: the input's number, equal to its context number in the run's index.
        edits: up to `analysis.steering.generate.MAX_EDITS` edits of distinct features.
        positions: where they apply.

    Raises:
        SaescopeError: the run has no module, the module is missing or has changed, the edits or positions are invalid, or
            the output can't be drawn.
    """
    with LOCK:
        trained = open_trained(run)
        module = trained.module
        checked(edits, trained)
        if not 0 <= number < module.inputs.n:
            raise SaescopeError(f"There is no input {number}; {module.name} has 0 to {module.inputs.n - 1}.")
        n_positions = module.place(trained.site.output).n_positions
        if positions != "all" and (wrong := [i for i in positions if not 0 <= int(i) < n_positions]):
            raise SaescopeError(f"There is no position {wrong[0]}; an input has 0 to {n_positions - 1}.")
        keep = torch.zeros(1, n_positions, dtype=torch.bool)
        keep[0, list(range(n_positions) if positions == "all" else map(int, positions))] = True
        numbers = torch.tensor([number])
        modes: dict[str, Literal["add", "set"]] = {"add": "add", "clamp": "set"}
        does = [splice.Edit(trained.site, (e.feature,), e.strength, modes[e.mode]) for e in edits]
        baseline = module.logits(numbers)
        with SplicedModel(module, {trained.site: trained.sae}).spliced(keep=keep, edits=does, record=False):
            steered = module.logits(numbers)
    drawn = [module.drawn(_first(out), f"{module.name}: Feed.output") for out in (baseline, steered)]
    draw = module.feed.image
    image = None if draw is None else picture(draw(module.inputs[number]), f"{module.name}: Feed.image")
    return SteeredInput(number, image, drawn[0], drawn[1], tuple(edits), positions, _change(baseline, steered))


def _first(output: Any) -> Any:
    """The only element of a batch of one."""
    if isinstance(output, dict):
        return {key: _first(value) for key, value in output.items()}
    return tuple(map(_first, output)) if isinstance(output, tuple | list) else output[0]


def _change(before: Any, after: Any) -> float:
    if isinstance(before, dict):
        before, after = tuple(before.values()), tuple(after.values())
    if isinstance(before, tuple | list):
        before, after = before[0], after[0]
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    return float((after - before).double().norm() / before.double().norm().clamp_min(1e-30))
