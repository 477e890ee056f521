"""How much of a behaviour a circuit carries by itself, and how much is left without it.

    faithfulness = (m(C) − m(∅)) / (m(M) − m(∅))        m(C): everything outside the circuit C is moved to its reference
    completeness = (m(M∖C) − m(∅)) / (m(M) − m(∅))      m(M∖C): C itself is moved, all else stays as found

after Marks et al. 2403.19647, §3.3, where completeness is called the faithfulness of the complement (best: 0). m is the
mean over examples, so that both are ratios of means; M is the model without SAEs. m(∅) is always the run in which every
node of every site is moved, errors too, whatever is done with errors in m(C): with errors kept, the empty circuit scores
above 0 by what they carry.
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
    """What one ablation leaves of a behaviour, example by example.

    Attributes:
        run: the metric in the ablated run.
        empty: with everything moved, m(∅).
        full: of the model as it is, m(M).
    """

    run: Float64[np.ndarray, " n_examples"]
    empty: Float64[np.ndarray, " n_examples"]
    full: Float64[np.ndarray, " n_examples"]

    @property
    def value(self) -> float:
        """The ratio of means."""
        return self.interval(n_bootstraps=0).value

    @property
    def by_example(self) -> Float64[np.ndarray, " n_examples"]:
        """The same ratio of each example; far off, or not finite, where an example's denominator is near 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.run - self.empty) / (self.full - self.empty)

    @property
    def means(self) -> dict[str, float]:
        """What the ratio is made of: the mean metric of the ablated run, with everything moved, and of the model."""
        return {"metric": float(self.run.mean()), "metric_empty": float(self.empty.mean()),
                "metric_model": float(self.full.mean())}

    def interval(self, *, n_bootstraps: int = bootstrap.N_BOOTSTRAPS, seed: int = 0) -> Interval:
        """The ratio of means with its interval over bootstraps of the examples."""
        columns = np.stack([self.run - self.empty, self.full - self.empty], axis=1)
        return bootstrap.interval(lambda means: means[:, 0] / means[:, 1], columns, n_bootstraps=n_bootstraps, seed=seed)


def faithfulness(
    model: CircuitModel, groups: Iterable[Examples], metric: Metric, ablations: Sequence[Ablation], **options: Any
) -> list[Faithfulness]:
    """What each of some ablations leaves of a behaviour: faithfulness, or completeness where nodes `inside` are moved.

    Args:
        model: the model with its SAEs.
        groups: examples, best other ones than the circuit was found on.
        metric: of the last logits.
        ablations: see `ablation.Ablation`.
        options: of `ablation.measure`: reference, means, batch.

    Raises:
        SaescopeError: as `measure`.
    """
    empty, full, *runs = measure(model, groups, metric, [NOTHING_KEPT, PLAIN, *ablations], **options)
    return [Faithfulness(run, empty, full) for run in runs]
