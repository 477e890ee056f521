"""Agreement of estimators with exact ablation on a task, and the cheapest estimator that agrees well enough."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float64

from analysis.circuits.effects.completeness import completeness
from analysis.circuits.effects.exact import exact_effects
from analysis.circuits.effects.nodes import Method, node_effects
from analysis.circuits.effects.reference import Means, Reference
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import NodeEffects
from analysis.circuits.tasks.examples import Examples, Metric

ENOUGH = 0.95
"""Correlation with exact ablation at which an estimator is good enough."""


@dataclass(frozen=True)
class Estimator:
    """A method and its number of steps, which only ig has."""

    method: Method
    n_steps: int = 0

    def __str__(self) -> str:
        return f"{self.method}-{self.n_steps}" if self.n_steps else self.method

    def passes(self, n_sites: int) -> int:
        """Forward + backward passes per batch, not counting the two forward passes for the states."""
        return n_sites * self.n_steps if self.method == "ig" else 1


ESTIMATORS = (Estimator("attribution"), Estimator("relp"), Estimator("ig", 5), Estimator("ig", 10))
"""All estimators, cheapest first."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of one estimator with exact ablation at one site, over the ablated nodes.

    Attributes:
        site: index into `CircuitModel.sites`.
        hook: the site's output hook.
        estimator: its name.
        pearson: correlation of the nodes' mean effects, one node per position; NaN if either is constant.
        pearson_by_example: the same over every node of every example.
        slope: least-squares slope of estimated against exact means; 1 is ideal.
        n_nodes: number of ablated nodes.
        completeness: residual of the sum over all of the site's nodes (`Completeness.residual`).
        passes: forward + backward passes per batch, for all sites together.
        seconds: time for all sites together, including the states.
    """

    site: int
    hook: str
    estimator: str
    pearson: float
    pearson_by_example: float
    slope: float
    n_nodes: int
    completeness: float
    passes: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Estimated and exact effects, and their agreement.

    Attributes:
        effects: estimated effects of all nodes, by estimator.
        exact: exact effects of the ablated nodes.
        seconds: time of exact ablation.
        table: one row per site and estimator; sites in causal order, cheapest estimator first.
    """

    effects: dict[Estimator, NodeEffects]
    exact: NodeEffects
    seconds: float
    table: tuple[Agreement, ...]

    @property
    def rows(self) -> list[dict[str, str | int | float]]:
        """The table's rows, for a file."""
        return [asdict(line) for line in self.table]


def compare_estimators(
    model: CircuitModel, examples: Examples, metric: Metric, *, estimators: Sequence[Estimator] = ESTIMATORS,
    n_largest: int = 20, n_random: int = 20, seed: int = 0, reference: Reference = "counterfactual",
    means: Means | None = None, batch: int = 32, progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run all estimators, and exactly ablate their largest nodes plus a random sample.

    Args:
        estimators: cheapest first.
        n_largest: nodes per site and estimator, by absolute mean effect.
        n_random: further nodes per site, drawn from those with a non-zero effect.
        seed: seed of the draw.
        reference: what nodes are patched to.
        means: mean states, for the reference `mean`.
        batch: prompts per forward pass.
        progress: told of every site of an example that is done, for each estimator and for exact ablation.
    """
    effects, seconds = {}, {}
    for estimator in estimators:
        start = time.perf_counter()
        effects[estimator] = node_effects(
            model, examples, metric, reference=reference, method=estimator.method, n_steps=estimator.n_steps, means=means,
            batch=batch, progress=progress,
        )
        seconds[estimator] = time.perf_counter() - start
    chosen = _sample(list(effects.values()), len(model.sites), n_largest, n_random, seed)
    start = time.perf_counter()
    nodes = effects[estimators[0]].nodes.take(chosen)
    exact = exact_effects(
        model, examples, metric, reference=reference, means=means, nodes=nodes, batch=batch, progress=progress
    )
    exact_seconds = time.perf_counter() - start
    residuals = {
        e: completeness(model, examples, metric, found, reference=reference, means=means, batch=batch).residual
        for e, found in effects.items()
    }
    table = [
        Agreement(
            index, site.output, str(e), *_compared(found.take(chosen), exact, index), float(residuals[e][index]),
            e.passes(len(model.sites)), seconds[e],
        )
        for index, site in enumerate(model.sites) for e, found in effects.items()
    ]
    return Comparison(effects, exact, exact_seconds, tuple(table))


def _sample(
    effects: Sequence[NodeEffects], n_sites: int, n_largest: int, n_random: int, seed: int
) -> Bool[np.ndarray, " n_nodes"]:
    """Mask of the nodes to ablate. All estimators have the same nodes, which depend only on the states."""
    nodes, sizes = effects[0].nodes, [np.abs(found.mean) for found in effects]
    moving = np.any([np.asarray(abs(found.values).sum(axis=0)).ravel() > 0 for found in effects], axis=0)
    chosen = np.zeros(len(nodes), dtype=bool)
    for site in range(n_sites):
        mine = np.flatnonzero((nodes.site == site) & moving)
        for size in sizes:
            chosen[mine[np.argsort(-size[mine], kind="stable")[:n_largest]]] = True
        rest = mine[~chosen[mine]]
        draw = np.random.default_rng([seed, site]).permutation(len(rest))[:n_random]
        chosen[rest[draw]] = True
    return chosen


def _compared(found: NodeEffects, exact: NodeEffects, site: int) -> tuple[float, float, float, int]:
    """Two correlations, slope and number of nodes of a site."""
    mine = exact.nodes.site == site
    ours, theirs = found.mean[mine], exact.mean[mine]
    each = [part.values[:, mine].toarray().ravel() for part in (found, exact)]
    spread = theirs - theirs.mean() if len(theirs) else theirs
    power = float(spread @ spread)
    return pearson(ours, theirs), pearson(*each), float(spread @ ours) / power if power else np.nan, int(mine.sum())


def pearson(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " n"]) -> float:
    """Pearson correlation; NaN if either is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def cheapest(table: Sequence[Agreement], at_least: float = ENOUGH) -> str | None:
    """The first estimator in the table whose correlation is at least `at_least` at every site (ignoring NaN), or None."""
    least: dict[str, float] = {}
    for line in table:
        least[line.estimator] = float(np.fmin(least.get(line.estimator, np.nan), line.pearson))
    return next((name for name, value in least.items() if value >= at_least), None)


def cheapest_by_site(table: Sequence[Agreement], at_least: float = ENOUGH) -> Mapping[int, str | None]:
    """For each site, the first estimator whose correlation there is at least `at_least`, or None."""
    sites = dict.fromkeys(line.site for line in table)
    return {site: cheapest([line for line in table if line.site == site], at_least) for site in sites}
