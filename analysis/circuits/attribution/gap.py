"""How much frozen attention patterns miss: compare the graph's predictions with interventions, patterns frozen and live.

Features are ablated one at a time, at their position, fully or by a share. Later features respond; errors stay fixed. The
change of the most probable logit (minus the mean of all logits) is measured three times:

    held        attention patterns and norms frozen at the prompt's, as in the graph
    patterns    patterns live, norms frozen
    live        nothing frozen; MLPs without a dictionary respond too
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.attribution.graph import AttributionGraph
from analysis.circuits.attribution.linear import LinearPrompt
from analysis.circuits.attribution.steps import at_once
from analysis.circuits.effects.agreement import pearson
from training.model.edits import Edit
from training.model.frozen import FrozenModel
from training.model.splice import SplicedModel


@dataclass(frozen=True)
class Gap:
    """Effects of ablating nodes on a logit; arrays are indexed by node.

    Attributes:
        nodes: node names.
        logit: token id of the logit.
        predicted: the graph's prediction: minus the sum over all paths.
        held, patterns, live: measured effects; see the module docstring.
    """

    nodes: tuple[str, ...]
    logit: int
    predicted: Float64[np.ndarray, " n"]
    held: Float64[np.ndarray, " n"]
    patterns: Float64[np.ndarray, " n"]
    live: Float64[np.ndarray, " n"]

    def rows(self) -> list[dict[str, Any]]:
        """One row per node."""
        columns = {name: column.tolist() for name, column in asdict(self).items() if isinstance(column, np.ndarray)}
        return [{"node": node, **{name: columns[name][i] for name in columns}} for i, node in enumerate(self.nodes)]

    def summary(self) -> dict[str, float]:
        """Relative gaps and correlations.

        Gaps are Σ |difference| / Σ |measured|: predicted vs held, held vs live patterns, held vs all live. `agreement_held`
        and `agreement_live` are Pearson correlations of the graph's predictions with exact ablation.
        """
        return {
            "agreement_held": pearson(self.predicted, self.held),
            "agreement_live": pearson(self.predicted, self.live),
            "prediction_gap": _relative(self.predicted, self.held), "pattern_gap": _relative(self.held, self.patterns),
            "live_gap": _relative(self.held, self.live), "n_interventions": float(len(self.nodes)),
        }


def frozen_gap(
    linear: LinearPrompt, graph: AttributionGraph, n: int = 20, *, share: float = 1.0, batch: int = 10,
    progress: Callable[[int], None] | None = None,
) -> Gap:
    """Ablate the n features with the largest predicted effects, one by one.

    Args:
        linear: the graph's prompt.
        graph: the graph.
        n: number of interventions.
        share: share of the feature's value to remove. Small shares make fewer other features switch on or off, which no
            graph predicts.
        batch: interventions per forward pass.
        progress: called with the number of newly finished interventions; each counts three times.
    """
    return at_once(gap_steps(linear, graph, n, share=share, batch=batch), progress)


def gap_steps(
    linear: LinearPrompt, graph: AttributionGraph, n: int = 20, *, share: float = 1.0, batch: int = 10
) -> Generator[int, None, Gap]:
    """`frozen_gap`, one batch at a time; yields the number of newly finished interventions."""
    effect = -graph.total_effects()
    features = np.flatnonzero(graph.kinds.features)
    chosen = features[np.argsort(-np.abs(effect[features]), kind="stable")[:n]]
    logit = int(graph.nodes.feature[int(graph.probability.argmax())])
    triples = [graph.nodes.triples[i] for i in chosen]
    bare = ("mlps",) if linear.mlps == "held" else ()
    ways = {"held": ("attention", "norms", *bare), "patterns": ("norms", *bare), "live": ()}
    measured = {}
    for name, parts in ways.items():
        measured[name] = yield from _without(linear, triples, logit, parts, share, batch)
    names = graph.names
    return Gap(tuple(names[i] for i in chosen), logit, share * effect[chosen], **measured)


def _without(
    linear: LinearPrompt, triples: Sequence[tuple[int, int, int]], logit: int, freeze: Iterable[str], share: float,
    batch: int,
) -> Generator[int, None, Float64[np.ndarray, " n"]]:
    """Change of a logit when each feature (site, position, feature) alone is ablated."""
    model = linear.circuit.model
    parts = tuple(freeze)
    forward = FrozenModel.at(model, linear.tokens[None], parts) if parts else None
    spliced = SplicedModel(model, linear.circuit.saes)
    with torch.no_grad():
        clean = spliced.run(linear.tokens[None], keep=linear.keep[None], freeze=forward)
    before, found = _logit(clean.logits, logit), []
    for start in range(0, len(triples), batch):
        some = triples[start : start + batch]
        tokens, keep = linear.tokens.expand(len(some), -1), linear.keep.expand(len(some), -1)
        edits = [_taken_away(linear, triple, share, i, len(some)) for i, triple in enumerate(some)]
        errors = {site: error.repeat(len(some), 1) for site, error in clean.errors.items()}
        with torch.no_grad():  # not around the yield: the caller's code runs there
            run = spliced.run(tokens, keep=keep, freeze=forward, edits=edits, errors=errors)
        found.append(_logit(run.logits, logit) - before)
        yield len(some)
    return torch.cat([before.new_zeros(0), *found]).numpy()


def _taken_away(linear: LinearPrompt, triple: tuple[int, int, int], share: float, copy: int, n: int) -> Edit:
    site, position, feature = triple
    where = torch.zeros(n, len(linear.tokens), dtype=torch.bool)
    where[copy, position] = True
    return Edit(linear.sites[site], [feature], 1 - share, "scale", where)


def _logit(logits: Tensor, token: int) -> Tensor:
    last = logits[:, -1].double().cpu()
    return last[:, token] - last.mean(dim=1)


def _relative(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " n"]) -> float:
    return float(np.abs(a - b).sum() / max(np.abs(b).sum(), 1e-300))
