"""The two ends between which a node moves, each with the run that it belongs to.

An effect on a feature depends on where it is taken: one that is inactive in the clean prompt does not answer there, though
it may be what the counterfactual prompt is about. So edges are means over both ends:

    clean        the clean prompt as it is; a move goes to the reference
    reference    every site at its reference (the counterfactual prompt; the clean one where that is a mean or zero); a move
                 goes back to the clean value, and counts with the opposite sign
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Int64
from torch import Tensor

from analysis.circuits.effects.placed import Placed, Steps
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.tasks.examples import Examples
from training.model.splice import Forward
from training.site import Site

Ends = Literal["clean", "both"]


@dataclass(frozen=True)
class End:
    """Where effects are taken.

    Attributes:
        tokens: of the run.
        targets: what every site's target is there.
        sign: 1 where moves to the reference begin, −1 where they end.
    """

    tokens: Int64[Tensor, "n_examples n_ctx"]
    targets: dict[Site, Tensor]
    sign: int


@dataclass(frozen=True)
class Span:
    """Some examples between clean and reference.

    Attributes:
        examples: which.
        clean: state of each site in the clean prompt.
        reference: its reference.
    """

    examples: Examples
    clean: dict[Site, State]
    reference: dict[Site, State]

    @classmethod
    def of(
        cls, model: CircuitModel, examples: Examples, reference: Reference, means: Means | None, forward: Forward | None
    ) -> "Span":
        """Run the prompts.

        Raises:
            SaescopeError: single prompts have no counterfactual.
        """
        clean, _ = model.states(examples.clean, examples.keep, forward)
        return cls(examples, clean, reference_states(model, examples, reference, means))

    def ends(self, which: Ends, reference: Reference) -> list[End]:
        """The clean end, or both."""
        ends = [End(self.examples.clean, {site: state.target for site, state in self.clean.items()}, 1)]
        if which == "both":
            tokens = self.examples.corrupt if reference == "counterfactual" else self.examples.clean
            assert tokens is not None
            ends.append(End(tokens, {site: state.target for site, state in self.reference.items()}, -1))
        return ends

    def steps(self, model: CircuitModel, entries: dict[Site, Placed]) -> dict[Site, Steps]:
        """From clean to reference."""
        return {
            site: Steps.between(model.saes[site], found, self.clean[site], self.reference[site])
            for site, found in entries.items()
        }
