"""Definition of an evaluation: a name, settings per suite, and a function of rows and a coder."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from analysis.evals.common.context import Context
from analysis.evals.common.result import Found, Metrics
from analysis.trained import TrainedSAE
from sae.coder import Coder

Suite = Literal["quick", "full"]
CHEAP = ("random", "pca", "channels")
"""Controls that need no training; always included."""
TRAINED = ("frozen-decoder", "frozen-encoder", "random-model")
"""Controls trained by `sae eval --controls`."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Each has its own file, as `EVALUATION`; `registry` lists them."""

    name: str
    title: str
    version: int
    """Incremented when the definition of a metric changes, so that older results are recomputed."""
    quick: Any
    """Settings of the quick suite: a frozen dataclass of plain values."""
    full: Any
    run: Callable[[Context, Coder, Any], Found]
    """Evaluate a coder on the context's rows. Raises SaescopeError, one sentence, if that isn't possible."""
    controls: tuple[str, ...] = (*CHEAP, *TRAINED)
    """Controls that it is also run on."""
    references: Callable[[Context, Any], Mapping[str, Metrics]] | None = None
    """What is attainable on these rows without a dictionary (a supervised skyline), measured once."""
    unfit: Callable[[TrainedSAE], str | None] = lambda _: None
    """Reason why a run can't be evaluated, if known beforehand; one sentence, or None."""
    per_feature: bool = False
    """Whether it has per-feature results."""
    facts: Callable[[Context], Mapping[str, Any]] = lambda _: {}
    """Further inputs that determine the results, besides the run's weights, rows, controls and settings; opens neither rows
    nor a model."""
    cost: tuple[float, float] = (10.0, 60.0)
    """Rough seconds per coder in the two suites, for the progress display."""

    def settings(self, suite: Suite) -> Any:
        """Settings of a suite."""
        return self.quick if suite == "quick" else self.full

    def plain_settings(self, suite: Suite) -> dict[str, Any]:
        """Settings of a suite as plain values, for JSON."""
        return asdict(self.settings(suite))
