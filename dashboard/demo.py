"""From nothing to a labelled feature: what `sae demo` makes, step by step. What is done already is not done again."""

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
"""Features, the most frequent ones, whose labels are waited for before somebody is asked to look."""


def make(
    config: str, runs: Path, display: Display, ready: Callable[[Path], None] = lambda _: None
) -> tuple[Path, int]:
    """A trained, measured, indexed and labelled run, and the feature to look at first.

    Args:
        config: of one training.
        runs: the folder of all runs.
        display: told of each step.
        ready: told of the run once its first features have labels, while the others get theirs.

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
