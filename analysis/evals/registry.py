"""Registry of the evaluations: a table of names and modules (one small file each in `metrics`), and lookup."""

import difflib
import importlib
from collections.abc import Sequence

from analysis.evals.common.evaluation import Evaluation
from analysis.evals.probes.labelled import LabelledText
from sae.errors import SaescopeError

EVALUATIONS: dict[str, str] = {
    "core": "analysis.evals.metrics.core",
    "mdl": "analysis.evals.metrics.mdl",
    "stability": "analysis.evals.metrics.stability",
    "probing": "analysis.evals.metrics.probing",
    "absorption": "analysis.evals.metrics.absorption",
    "bidirectional": "analysis.evals.metrics.bidirectional",
    "principled": "analysis.evals.metrics.principled",
    "ground-truth": "analysis.evals.metrics.ground_truth",
    "interpretability": "analysis.evals.metrics.interpretability",
}
"""Name on the command line → module with its `EVALUATION`, in the order in which they are run and shown."""


def evaluation(name: str) -> Evaluation:
    """Look up an evaluation by name.

    Raises:
        SaescopeError: there is no such evaluation.
    """
    if name not in EVALUATIONS:
        near = difflib.get_close_matches(name, EVALUATIONS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SaescopeError(f"there is no evaluation called {name!r}: {hint}There are {', '.join(EVALUATIONS)}.")
    found: Evaluation = importlib.import_module(EVALUATIONS[name]).EVALUATION
    return found


def evaluation_of(labelled: LabelledText) -> Evaluation:
    """The evaluation that probes for the labels of a user's dataset. Nothing is read yet."""
    from analysis.evals.metrics import labelled as metrics

    return metrics.evaluation_of(labelled)


def chosen(only: Sequence[str] = ()) -> list[Evaluation]:
    """The named evaluations, or all of them, in the table's order. Raises as `evaluation`."""
    wanted = [evaluation(name) for name in only] if only else [evaluation(name) for name in EVALUATIONS]
    return sorted(wanted, key=lambda one: list(EVALUATIONS).index(one.name))
