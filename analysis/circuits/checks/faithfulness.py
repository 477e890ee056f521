"""Faithfulness and completeness: how much of a behaviour a circuit carries, and how much is left without it.

    faithfulness = (m(C) − m(∅)) / (m(M) − m(∅))        m(C): everything outside the circuit C is patched to its reference
    completeness = (m(M∖C) − m(∅)) / (m(M) − m(∅))      m(M∖C): C itself is patched, the rest is kept

After Marks et al. 2403.19647, §3.3, where completeness is called the faithfulness of the complement (best: 0). m is the
mean over examples, so both are ratios of means; M is the model without SAEs. In m(∅) every node of every site is always
patched, including errors, however m(C) treats errors. So with errors kept, the empty circuit scores above 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.circuits.checks import bootstrap
from analysis.circuits.checks.ablation import NOTHING_KEPT, PLAIN, Ablation, measure
from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples, Metric
from sae.metrics import Interval


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of one ablation, with the metric of each example.

    Attributes:
        run: the metric in the ablated run.
        empty: the metric with everything patched, m(∅).
        full: the metric of the model itself, m(M).
    """

    run: Float64[np.ndarray, " n_examples"]
    empty: Float64[np.ndarray, " n_examples"]
    full: Float64[np.ndarray, " n_examples"]

    @property
    def value(self) -> float:
        """The ratio of means over examples."""
        return self.interval(n_bootstraps=0).value

    @property
    def by_example(self) -> Float64[np.ndarray, " n_examples"]:
        """The ratio of each example; unstable or not finite where the example's denominator is near 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.run - self.empty) / (self.full - self.empty)

    @property
    def means(self) -> dict[str, float]:
        """Parts of the ratio: mean metric of the ablated run, with everything patched, and of the model."""
        return {"metric": float(self.run.mean()), "metric_empty": float(self.empty.mean()),
                "metric_model": float(self.full.mean())}

    def interval(self, *, n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0) -> Interval:
        """The ratio of means with its bootstrap interval over examples."""
        columns = np.stack([self.run - self.empty, self.full - self.empty], axis=1)
        return bootstrap.interval(lambda means: means[:, 0] / means[:, 1], columns, n_bootstraps=n_bootstraps, seed=seed)


def faithfulness(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, ablations: Sequence[Ablation], **options: Any
) -> list[Faithfulness]:
    """Faithfulness of each ablation; completeness for ablations with `moved="inside"`.

    Args:
        model: the model with its SAEs.
        groups: examples, preferably not those the circuit was found on.
        metric: metric on the last position's logits.
        ablations: see `ablation.Ablation`.
        options: options of `ablation.measure`: reference, means, batch.

    Raises:
        SaescopeError: as `measure`.
    """
    empty, full, *runs = measure(model, groups, metric, [NOTHING_KEPT, PLAIN, *ablations], **options)
    return [Faithfulness(run, empty, full) for run in runs]
