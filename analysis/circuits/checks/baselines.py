"""Baselines for a circuit's faithfulness.

    all features    every SAE spliced in, errors ablated: the expected upper bound for circuits of features alone
    random          the same number of nodes, drawn from those active in the examples
    MLP activations the same number, chosen by the same estimator, all others mean-ablated: the fair baseline
                    (2601.22594), by the same code on `coordinates.mlp_activations`
    coordinates     the same with the sites' own coordinates (`coordinates.own_coordinates`), as in Marks et al. 2403.19647

Each basis has its own m(∅): with MLP activations alone, attention is never ablated.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from analysis.circuits.checks.ablation import Errors
from analysis.circuits.checks.bootstrap import N_BOOTSTRAPS
from analysis.circuits.checks.curve import Curve, Series, by_effect, curves, in_order, spread
from analysis.circuits.effects.reference import Means, Reference, mean_states, position_of_rows
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric


def active_features(
    model: CircuitModel, groups: Iterable[Examples], *, positions: bool = True, batch: int = 32
) -> Nodes:
    """Features that are active in the clean prompt of at least one example, without errors and skip paths.

    Args:
        model: the model with its SAEs.
        groups: the examples.
        positions: one node per position, or one for all positions.
        batch: examples per forward pass.
    """
    found: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(model.sites))}
    for part in (part for group in groups for part in group.batches(batch)):
        at = position_of_rows(part)
        for i, state in enumerate(model.states(part.clean, part.keep)[0].values()):
            place = at[state.code.rows().cpu()] if positions else torch.full_like(state.code.rows().cpu(), ANYWHERE)
            found[i].append(torch.stack([place, state.code.feature.long().cpu()], dim=1).unique(dim=0))
    parts = [torch.cat(some).unique(dim=0).numpy() for some in found.values()]
    site = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    place, feature = np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts]).T.copy()
    return Nodes(site, place, feature)


def random_circuits(active: Nodes, sizes: Sequence[int], seed: int) -> list[Nodes]:
    """Nested circuits of uniformly drawn nodes."""
    return in_order(active, np.random.default_rng(seed).permutation(len(active)), sizes)


def random_curve(
    model: CircuitModel, groups: Sequence[Examples], metric: Metric, sizes: Sequence[int], *, active: Nodes,
    n_random: int = 5, seed: int = 0, errors: Errors = "circuit", **options: Any,
) -> Curve:
    """Curve of random features: mean over draws, with their range as interval.

    Args:
        model: the model with its SAEs.
        groups: held-out examples.
        metric: metric on the last position's logits.
        sizes: circuit sizes, ascending.
        active: nodes to draw from.
        n_random: number of draws, with seeds `seed`, `seed + 1`, ….
        seed: seed of the first draw.
        errors: as in `Ablation`.
        options: options of `ablation.measure`: reference, means, batch.
    """
    series = [
        Series("", random_circuits(active, sizes, seed + i), errors=errors) for i in range(n_random)
    ]
    return spread("random features", curves(model, groups, metric, series, n_bootstraps=0, **options))


Estimate = Callable[[CircuitModel, Means], NodeEffects]
"""Function of a model and its means that returns node effects on the training examples."""


def coordinate_curve(
    name: str, model: CircuitModel, train: Sequence[Examples], test: Sequence[Examples], metric: Metric,
    sizes: Sequence[int], estimate: Estimate, *, n_bootstraps: int = N_BOOTSTRAPS, seed: int = 0,
    reference: Reference = "mean", batch: int = 32,
) -> Curve:
    """Curve of coordinates chosen by an estimator, all others patched to their reference.

    Args:
        name: name in a legend.
        model: from `coordinates.mlp_activations` or `coordinates.own_coordinates`.
        train: examples for means and effects.
        test: held-out examples.
        metric: metric on the last position's logits.
        sizes: circuit sizes, ascending.
        estimate: the estimator that also chose the features.
        n_bootstraps: bootstrap draws per interval.
        seed: seed of the draws.
        reference: what coordinates are patched to in the test runs.
        batch: examples per forward pass.
    """
    means = mean_states(model, train, batch=batch)
    series = Series(name, by_effect(estimate(model, means), sizes, "dropped"))
    return curves(
        model, test, metric, [series], n_bootstraps=n_bootstraps, seed=seed, reference=reference, means=means, batch=batch
    )[0]
