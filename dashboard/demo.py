"""The steps of `sae demo`, from nothing to a labelled feature. Steps that are already done are skipped."""

from collections.abc import Callable
from pathlib import Path

from analysis.index import build
from analysis.labels.commands import label_all, told
from analysis.labels.first_look import good_first
from analysis.labels.store import Labels
from training.display import Display
from training.run import train

STEPS = ("loading the model", "caching activations", "training", "measuring the SAE inside the model", "indexing",
         "labelling")
FIRST = 384
"""Label this many of the most frequent features before inviting the user to look."""


def make(
    config: str, runs: Path, display: Display, ready: Callable[[Path], None] = lambda _: None
) -> tuple[Path, int]:
    """Train, evaluate, index and label a run; return its folder and the feature to look at first.

    Args:
        config: the training config.
        runs: the folder that holds the runs.
        display: shows each step.
        ready: called with the run folder once the first features have labels; the others follow.

    Raises:
        SaescopeError: as `train`, `build` and `label_all`.
    """
    display.plan(*STEPS)
    display.step(STEPS[0])
    run = train(config, runs=runs, resume=True, display=display).folder
    assert run is not None
    index, labels = build(run, display=display), Labels(run)
    have = labels.names()
    alive = index.top("density", where="n_active > 0", limit=index.d_sae, columns=["feature"])["feature"].to_pylist()
    if new := [feature for feature in alive if feature not in have]:
        first = min(FIRST, len(new))
        display.say(told(label_all(index, labels, new, display=display, first=first, ready=lambda: ready(run))))
    return run, good_first(index, labels)
