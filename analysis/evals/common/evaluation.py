"""What an evaluation is: a name, its settings by suite, and a function of rows and a coder."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from analysis.evals.common.context import Context
from analysis.evals.common.result import Found, Metrics
from analysis.trained import TrainedSAE
from sae.coder import Coder

Suite = Literal["quick", "full"]
CHEAP = ("random", "pca", "channels")
"""Controls that need no training: made for every evaluation."""
TRAINED = ("frozen-decoder", "frozen-encoder", "random-model")
"""Those that `sae eval --controls` trains."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Each lies in a file of its own as `EVALUATION`; `registry` lists them."""

    name: str
    title: str
    version: int
    """Raised when the definition of a figure changes: older results are then measured anew."""
    quick: Any
    """Settings of the quick suite: a frozen dataclass of plain values."""
    full: Any
    run: Callable[[Context, Coder, Any], Found]
    """What it finds of a coder on the context's rows. Raises SaescopeError, one sentence, where it cannot be."""
    controls: tuple[str, ...] = (*CHEAP, *TRAINED)
    """The controls it says something about; it is run on each of them too."""
    references: Callable[[Context, Any], Mapping[str, Metrics]] | None = None
    """What is attainable on these rows without any dictionary (a supervised skyline), measured once."""
    unfit: Callable[[TrainedSAE], str | None] = lambda _: None
    """Why a run cannot be measured so, if it cannot and that is known beforehand: one sentence."""
    per_feature: bool = False
    """Whether it says something of single features of a run."""
    facts: Callable[[Context], Mapping[str, Any]] = lambda _: {}
    """What determines its figures beside the run's weights, its rows, the controls and the settings; opens neither rows nor
    a model."""
    cost: tuple[float, float] = (10.0, 60.0)
    """Seconds it takes on one coder in the two suites, roughly: what the progress display shares out time by."""

    def settings(self, suite: Suite) -> Any:
        """Of a suite."""
        return self.quick if suite == "quick" else self.full

    def plain_settings(self, suite: Suite) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self.settings(suite))
