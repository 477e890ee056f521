"""The circuit of one task run on another: a circuit that carries every behaviour says nothing about its own.

Nodes of a circuit have positions, which mean the same in two tasks only where their prompts have one length (and even then
only as far as their templates agree). Elsewhere the circuit is tested with its nodes at all positions, on its own task too.
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
    """A task as it is tested.

    Attributes:
        groups: held-out examples.
        metric: of the last logits.
        means: of its own training examples.
    """

    groups: Sequence[Examples]
    metric: Metric
    means: Means | None = None

    @property
    def lengths(self) -> frozenset[int]:
        """Tokens of its prompts."""
        return frozenset(group.n_ctx for group in self.groups)


@dataclass(frozen=True)
class Cell:
    """The circuit of `circuit` on the examples of `task`.

    Attributes:
        circuit: name of the task that the circuit was found for.
        task: name of the task that it is run on.
        positions: whether nodes kept their positions.
        value: faithfulness.
    """

    circuit: str
    task: str
    positions: bool
    value: Interval

    def plain(self) -> dict[str, Any]:
        """In JSON types."""
        return {"circuit": self.circuit, "task": self.task, "positions": self.positions,
                **self.value.named("faithfulness")}


def specificity(
    model: CircuitModel, circuits: Mapping[str, Nodes], tasks: Mapping[str, Behaviour], *, errors: Errors = "circuit",
    **options: Any,
) -> list[Cell]:
    """The faithfulness of every circuit on every task, with positions where lengths agree, and without.

    Args:
        model: the model with its SAEs.
        circuits: by the name of the task that each was found for, which is among the tasks.
        tasks: by name.
        errors: as in `Ablation`.
        options: of `ablation.measure` besides means, and `n_bootstraps`, `seed` of the intervals.

    Returns:
        A cell for each circuit, task, and way of taking positions that there is.

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
    """A circuit's positions exist, and mean something, in another task."""
    return not (nodes.position == ANYWHERE).any() and own.lengths == other.lengths and len(own.lengths) == 1
