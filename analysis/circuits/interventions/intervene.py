"""`intervene`: run prompts clean and with interventions, and compare with the first-order prediction.

The prediction is Σ ⟨∂m/∂target, move⟩ over the sites, with the moves of the clean run: attribution patching's estimate of
the metric m and of every watched node, also for groups of nodes at several sites. An inactive watched feature has no
gradient, so it is predicted to stay at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.circuits.interventions.moves import Intervention, Moves, States, check, check_nodes
from analysis.circuits.interventions.runs import Runs
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.model.splice import Forward


@dataclass(frozen=True)
class Change:
    """Values per example: before, after, and the first-order prediction of after."""

    before: Float[Tensor, " n_examples *nodes"]
    after: Float[Tensor, " n_examples *nodes"]
    predicted: Float[Tensor, " n_examples *nodes"]


@dataclass(frozen=True)
class Intervened:
    """Result of interventions.

    Attributes:
        metric: change of the metric; None if none was given.
        nodes: the watched nodes.
        values: change of their values `[n_examples, n_nodes]`; norms for errors and skip paths; a node with position
            ANYWHERE is summed over positions.
        logits: (token, change) of the largest mean changes of last-position logits, relative to the mean over all tokens.
        before, after: last-position logits.
    """

    metric: Change | None
    nodes: Nodes
    values: Change
    logits: list[tuple[int, float]]
    before: Float[Tensor, "n_examples d_vocab"]
    after: Float[Tensor, "n_examples d_vocab"]

    def table(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Means over examples: a row for the metric, then one per watched node, with the given names."""
        m = self.metric
        rows = [] if m is None else [_row("metric", m.before, m.after, m.predicted)]
        names = names or [str(triple) for triple in self.nodes.triples]
        columns = (self.values.before.T, self.values.after.T, self.values.predicted.T)
        return [*rows, *(_row(*column) for column in zip(names, *columns, strict=True))]


def intervene(
    model: CircuitModel, examples: Examples | Int[Tensor, "n_examples n_ctx"], interventions: Sequence[Intervention],
    metric: Metric | None = None, *, watch: Nodes | None = None, reference: States | None = None,
    forward: Forward | None = None, n_logits: int = 10,
) -> Intervened:
    """Run prompts clean and with interventions, and predict the difference to first order.

    Args:
        model: model with SAEs at the nodes' sites.
        examples: examples of a task, or tokens without padding (then special tokens are skipped, and there are no answers).
        interventions: applied in this order.
        metric: metric on the output.
        watch: nodes whose values to record; after the intervention, if they are intervened on themselves.
        reference: what `ablate` patches to (`effects.reference.reference_states`); None is zero.
        forward: the model, or its `FrozenModel`.
        n_logits: number of changed logits to return.

    Raises:
        SaescopeError: a node's site, feature or position doesn't exist; a mode that errors and skip paths don't support;
            the prompts to patch from are missing or have another shape; the metric has no gradient.
    """
    examples = examples if isinstance(examples, Examples) else plain_examples(model, examples)
    nodes = Nodes.empty() if watch is None else watch
    check_nodes(model, examples, nodes)
    for one in interventions:
        check(model, examples, one)
    moves, runs = Moves(model, examples, interventions, reference, forward), Runs(model, examples, nodes, forward)
    clean = runs.clean()
    after = runs.intervened(moves)
    slope_m, slope = runs.slopes(moves, clean, metric)
    changed = None
    if metric is not None:
        m = [value(metric, run.logits, examples).double().cpu() for run in (clean, after)]
        changed = Change(m[0], m[1], m[0] + slope_m)
    return Intervened(changed, nodes, Change(clean.values, after.values, clean.values + slope),
                      _changed_logits(clean.logits, after.logits, n_logits), clean.logits[:, -1], after.logits[:, -1])


def plain_examples(model: CircuitModel, tokens: Int[Tensor, "n_examples n_ctx"]) -> Examples:
    """Examples from prompts without answers; all but special tokens are kept."""
    special = torch.tensor(sorted(model.model.special_ids), dtype=torch.int64)
    none = torch.zeros(len(tokens), 0, dtype=torch.int64)
    return Examples(tokens.long(), None, none, none, ~torch.isin(tokens.long(), special))


def _changed_logits(before: Tensor, after: Tensor, n: int) -> list[tuple[int, float]]:
    change = (after[:, -1].double() - before[:, -1].double()).mean(0)
    change = change - change.mean()
    order = change.abs().argsort(descending=True, stable=True)[:n]
    return list(zip(order.tolist(), change[order].tolist(), strict=True))


def _row(name: str, before: Tensor, after: Tensor, predicted: Tensor) -> dict[str, Any]:
    numbers = {"before": before, "after": after, "predicted": predicted}
    return {"node": name, **{key: float(one.mean()) for key, one in numbers.items()}}
