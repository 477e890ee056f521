"""Faithfulness and completeness against circuit size, and the area under the curve.

Circuits are nested: a circuit of n nodes is the first n in some order. The area is over log n, from the smallest to the
largest circuit, divided by that range: the mean height over orders of magnitude. Over n itself, circuits of 100 out of
100,000 nodes would hardly count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from analysis.circuits.checks import bootstrap
from analysis.circuits.checks.ablation import Ablation, Errors
from analysis.circuits.checks.faithfulness import Faithfulness, faithfulness
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, ERROR, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric
from sae.metrics import Interval


@dataclass(frozen=True)
class Series:
    """Circuits of growing size for one curve, and how they are ablated; see `Ablation`."""

    name: str
    circuits: Sequence[Nodes]
    moved: Literal["outside", "inside"] = "outside"
    errors: Errors = "circuit"


@dataclass(frozen=True)
class Curve:
    """Measurements of one series.

    Attributes:
        name: name in a legend.
        n_nodes: nodes of each circuit, ascending.
        n_summed: distinct nodes of each circuit, ignoring positions.
        values: faithfulness; completeness where the nodes inside are patched.
        area: area over log n.
    """

    name: str
    n_nodes: tuple[int, ...]
    n_summed: tuple[int, ...]
    values: tuple[Interval, ...]
    area: Interval

    def plain(self) -> dict[str, Any]:
        """The result in JSON types."""
        return {
            "name": self.name, "n_nodes": list(self.n_nodes), "n_summed": list(self.n_summed),
            "values": [value.named("value") for value in self.values], **self.area.named("area"),
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Curve":
        """Inverse of `plain`."""
        return cls(
            plain["name"], tuple(plain["n_nodes"]), tuple(plain["n_summed"]),
            tuple(_interval(value, "value") for value in plain["values"]), _interval(plain, "area"),
        )

    def reaches(self, level: float) -> int | None:
        """Size of the smallest circuit with at least this value; None if there isn't one."""
        return next((n for n, value in zip(self.n_nodes, self.values, strict=True) if value.value >= level), None)


def _interval(plain: Mapping[str, Any], name: str) -> Interval:
    value, bounds = plain[name], plain[f"{name}_interval"] or (None, None)
    return Interval(float("nan") if value is None else value, *bounds)


def sizes(largest: int, per_decade: int = 6) -> list[int]:
    """Sizes from 1 to `largest`, evenly spaced on a log axis, unique."""
    n_points = max(2, round(per_decade * np.log10(max(largest, 1))) + 1)
    return sorted({int(n) for n in np.geomspace(1, max(largest, 1), n_points).round()})


def by_effect(effects: NodeEffects, sizes: Sequence[int], errors: Errors = "circuit") -> list[Nodes]:
    """Circuits of the nodes with the largest |mean effect|; smaller than requested if too few nodes have an effect.

    Args:
        effects: effects of all nodes that may be chosen.
        sizes: circuit sizes, ascending.
        errors: as in `Ablation`; errors are chosen only if they are nodes like any other.
    """
    if errors != "circuit":
        effects = effects.take(effects.nodes.feature != ERROR)
    effects = effects.largest(max(sizes))
    order = np.argsort(-np.abs(effects.mean), kind="stable")
    return in_order(effects.nodes, order, sizes)


def in_order(nodes: Nodes, order: np.ndarray, sizes: Sequence[int]) -> list[Nodes]:
    """Circuits of the first n nodes in an order, each size once."""
    return [nodes.take(np.sort(order[:n])) for n in sorted({min(n, len(order)) for n in sizes})]


def curves(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, series: Sequence[Series], *,
    n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0, **options: Any,
) -> list[Curve]:
    """Measure several series on the same examples.

    Args:
        model: the model with its SAEs.
        groups: held-out examples.
        metric: metric on the last position's logits.
        series: one curve each.
        n_bootstraps: bootstrap draws per interval.
        seed: seed of the draws.
        options: options of `ablation.measure`: reference, means, batch.

    Raises:
        SaescopeError: as `measure`.
    """
    ablations = [Ablation(nodes, one.moved, one.errors) for one in series for nodes in one.circuits]
    found = iter(faithfulness(model, groups, metric, ablations, **options))
    return [_curve(one, [next(found) for _ in one.circuits], n_bootstraps, seed) for one in series]


def _curve(series: Series, found: Sequence[Faithfulness], n_bootstraps: int, seed: int) -> Curve:
    n_nodes = tuple(len(nodes) for nodes in series.circuits)
    columns = np.stack([*(one.run - one.empty for one in found), found[0].full - found[0].empty], axis=1)

    def area_of(means: Float64[np.ndarray, "n_draws n_columns"]) -> Float64[np.ndarray, " n_draws"]:
        return area(n_nodes, means[:, :-1] / means[:, -1:])

    return Curve(
        series.name, n_nodes, tuple(len(summed(nodes)) for nodes in series.circuits),
        tuple(one.interval(n_bootstraps=n_bootstraps, seed=seed) for one in found),
        bootstrap.interval(area_of, columns, n_bootstraps=n_bootstraps, seed=seed),
    )


def area(n_nodes: Sequence[int], values: Float64[np.ndarray, "n_draws n_sizes"]) -> Float64[np.ndarray, " n_draws"]:
    """Mean height of curves over log n, by the trapezoidal rule; the value itself if there is only one point.

    The empty circuit has no place on that axis and is left out.
    """
    n = np.asarray(n_nodes)
    x, y = np.log(n[n > 0]), values[:, n > 0]
    if len(x) < 2:
        return y.mean(axis=1)
    return (np.diff(x) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1) / (x[-1] - x[0])


def spread(name: str, several: Sequence[Curve]) -> Curve:
    """Mean of curves over the same sizes, with their range as the interval."""
    values = np.array([[value.value for value in one.values] for one in several])
    areas = np.array([one.area.value for one in several])
    n_summed = np.array([one.n_summed for one in several]).mean(axis=0).round()

    def over(column: Float64[np.ndarray, " n"]) -> Interval:
        return Interval(float(column.mean()), float(column.min()), float(column.max()))

    return Curve(
        name, several[0].n_nodes, tuple(int(n) for n in n_summed), tuple(over(column) for column in values.T), over(areas)
    )


def summed(nodes: Nodes) -> Nodes:
    """The same nodes, with position ANYWHERE."""
    return Nodes.of([(site, ANYWHERE, feature) for site, _, feature in nodes.triples])
