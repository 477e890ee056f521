"""The two ends of a node's patch, clean and reference, each with its run.

An effect on a feature depends on where it is measured: a feature that is inactive in the clean prompt doesn't respond
there, though it may be central to the counterfactual prompt. So edge effects are averaged over both ends:

    clean        the clean prompt; nodes are patched to the reference
    reference    every site at its reference (in the counterfactual prompt; in the clean one if the reference is a mean or
                 zero); nodes are patched back to the clean value, with opposite sign
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from analysis.circuits.effects.gradients import clean_gradients
from analysis.circuits.effects.placed import Placed, Steps
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.tasks.examples import Examples, Metric
from training.model.frozen import FrozenModel
from training.model.splice import Forward
from training.site import Site

Ends = Literal["clean", "both"]
Weights = Mapping[Site, Float[Tensor, "n_rows _"]]
"""∂metric/∂target at each site's kept rows."""


@dataclass(frozen=True)
class End:
    """One end, where effects are measured.

    Attributes:
        tokens: tokens of the run.
        targets: every site's target at this end.
        sign: 1 at the clean end, −1 at the reference end.
    """

    tokens: Int64[Tensor, "n_examples n_ctx"]
    targets: dict[Site, Tensor]
    sign: int


@dataclass(frozen=True)
class Span:
    """A batch of examples between clean and reference.

    Attributes:
        examples: the batch.
        start: number of examples before it.
        clean: state of each site in the clean prompt.
        reference: reference state of each site.
        weights: the metric's gradient at each site's target, the weight of downstream nodes.
        forward: the model to run.
    """

    examples: Examples
    start: int
    clean: dict[Site, State]
    reference: dict[Site, State]
    weights: Weights
    forward: Forward

    def ends(self, which: Ends, reference: Reference) -> list[End]:
        """The clean end, or both."""
        ends = [End(self.examples.clean, {site: state.target for site, state in self.clean.items()}, 1)]
        if which == "both":
            tokens = self.examples.corrupt if reference == "counterfactual" else self.examples.clean
            assert tokens is not None
            ends.append(End(tokens, {site: state.target for site, state in self.reference.items()}, -1))
        return ends

    def steps(self, model: CircuitModel, placed: dict[Site, Placed]) -> dict[Site, Steps]:
        """Steps of the nodes from clean to reference."""
        return {
            site: Steps.between(model.saes[site], mine, self.clean[site], self.reference[site])
            for site, mine in placed.items()
        }


def spans(
    model: CircuitModel, examples: Examples, metric: Metric, *, reference: Reference, means: Means | None,
    weights: Weights | None, batch: int, freeze: Iterable[str] | None,
) -> Iterator[Span]:
    """Batches of examples with everything that edge effects need.

    Raises:
        SaescopeError: single prompts have no counterfactual; without weights, the metric's gradient is zero at the clean
            point.
    """
    start = row = 0
    for part in examples.batches(batch):
        forward = model.model if freeze is None else FrozenModel.at(model.model, part.clean, freeze)
        n_rows = int(part.keep.sum())
        mine = None if weights is None else {site: given[row : row + n_rows] for site, given in weights.items()}
        clean, _ = model.states(part.clean, part.keep, forward)
        to = reference_states(model, part, reference, means)
        yield Span(part, start, clean, to, mine or clean_gradients(model, part, metric, forward), forward)
        start, row = start + len(part), row + n_rows
