"""Completeness residual: how closely a site's node effects sum to the effect of patching the whole site."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.effects.repeats import Repeats
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import NodeEffects
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.model.splice import Reconstruct
from training.site import Site, SiteRows


@dataclass(frozen=True)
class Completeness:
    """Sums of node effects, and the change of the metric when the site alone is patched to its reference.

    Attributes:
        predicted: sum of the effects of a site's nodes.
        actual: m(site = reference) − m(clean).
    """

    predicted: Float64[np.ndarray, "n_sites n_examples"]
    actual: Float64[np.ndarray, "n_sites n_examples"]

    @property
    def residual(self) -> Float64[np.ndarray, " n_sites"]:
        """|mean predicted − mean actual| / |mean actual| of each site; means over examples."""
        gap = np.abs(self.predicted.mean(1) - self.actual.mean(1))
        return gap / np.maximum(np.abs(self.actual.mean(1)), np.finfo(float).tiny)

    @property
    def by_example(self) -> Float64[np.ndarray, " n_sites"]:
        """Σ |predicted − actual| / Σ |actual| over examples, so residuals of opposite sign don't cancel."""
        gap = np.abs(self.predicted - self.actual).sum(1)
        return gap / np.maximum(np.abs(self.actual).sum(1), np.finfo(float).tiny)


@torch.no_grad()
def completeness(
    model: CircuitModel, examples: Examples, metric: Metric, effects: NodeEffects, *,
    reference: Reference = "counterfactual", means: Means | None = None, batch: int = 32,
    freeze: Iterable[str] | None = None,
) -> Completeness:
    """Check the effects of all nodes on these examples; pass the same arguments as to `node_effects`.

    Costs one forward pass per site and batch.
    """
    parts = []
    for part in examples.batches(batch):
        to = reference_states(model, part, reference, means)
        runs = Repeats(model, part, 1, freeze)
        clean = value(metric, runs.logits({}), part)
        moved = [value(metric, runs.logits({site: _overwrite(to[site].target)}), part) for site in model.sites]
        parts.append(torch.stack(moved).double() - clean.double())
    return Completeness(_by_site(model.sites, effects), torch.cat(parts, dim=1).cpu().numpy())


def _overwrite(target: Tensor) -> Reconstruct:
    def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
        return target

    return put


def _by_site(sites: tuple[Site, ...], effects: NodeEffects) -> Float64[np.ndarray, "n_sites n_examples"]:
    belongs = effects.nodes.site[None] == np.arange(len(sites))[:, None]
    return np.asarray((effects.values @ belongs.T.astype(float)).T)
