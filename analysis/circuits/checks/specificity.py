"""Specificity: faithfulness of one task's circuit on other tasks. A circuit that does well on all of them explains little.

Positions mean the same in two tasks only if the prompts have the same length (and then only as far as the templates agree).
So circuits are also tested with their nodes at all positions, on their own task too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.circuits.checks.ablation import Ablation, Errors
from analysis.circuits.checks.curve import summed
from analysis.circuits.checks.faithfulness import Faithfulness, faithfulness
from analysis.circuits.effects.reference import Means
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, Nodes
from analysis.circuits.tasks.examples import Examples, Metric
from sae.metrics import Interval


@dataclass(frozen=True)
class Behaviour:
    """A task to test circuits on.

    Attributes:
        groups: held-out examples.
        metric: metric on the last position's logits.
        means: mean states over the task's own training examples.
    """

    groups: Sequence[Examples]
    metric: Metric
    means: Means | None = None

    @property
    def lengths(self) -> frozenset[int]:
        """Lengths of its prompts, in tokens."""
        return frozenset(group.n_ctx for group in self.groups)


@dataclass(frozen=True)
class Cell:
    """Faithfulness of one task's circuit on another task.

    Attributes:
        circuit: name of the circuit's own task.
        task: name of the task it is tested on.
        positions: whether nodes keep their positions.
        value: faithfulness.
    """

    circuit: str
    task: str
    positions: bool
    value: Interval

    def plain(self) -> dict[str, Any]:
        """The result in JSON types."""
        return {"circuit": self.circuit, "task": self.task, "positions": self.positions,
                **self.value.named("faithfulness")}


def specificity(
    model: CircuitModel, circuits: Mapping[str, Nodes], tasks: Mapping[str, Behaviour], *, errors: Errors = "circuit",
    **options: Any,
) -> list[Cell]:
    """Faithfulness of every circuit on every task, without positions, and with them where prompt lengths agree.

    Args:
        model: the model with its SAEs.
        circuits: circuits by the name of their own task, which must be among `tasks`.
        tasks: tasks by name.
        errors: as in `Ablation`.
        options: options of `ablation.measure` other than means, and `n_bootstraps`, `seed` of the intervals.

    Returns:
        One cell per circuit, task and treatment of positions.

    Raises:
        SaescopeError: as `measure`.
    """
    draws = {name: options.pop(name) for name in ("n_bootstraps", "seed") if name in options}
    cells = []
    for task, behaviour in tasks.items():
        runs = [
            (name, positions, nodes if positions else summed(nodes)) for name, nodes in circuits.items()
            for positions in (True, False) if not positions or _have_positions(nodes, tasks[name], behaviour)
        ]
        ablations = [Ablation(nodes, errors=errors) for _, _, nodes in runs]
        found: list[Faithfulness] = faithfulness(
            model, behaviour.groups, behaviour.metric, ablations, means=behaviour.means, **options
        )
        cells += [
            Cell(name, task, positions, one.interval(**draws))
            for (name, positions, _), one in zip(runs, found, strict=True)
        ]
    return cells


def _have_positions(nodes: Nodes, own: Behaviour, other: Behaviour) -> bool:
    """Whether a circuit's positions make sense in another task."""
    return not (nodes.position == ANYWHERE).any() and own.lengths == other.lengths and len(own.lengths) == 1
