"""Where the page Feature stands: one feature of a run, and the links from it."""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.index import Index
from analysis.labels.store import Labels
from dashboard.state import address
from dashboard.state.selection import Selection


@dataclass(frozen=True)
class CurrentFeature:
    """A feature of the chosen run."""

    chosen: Selection
    feature: int
    go: Callable[[int | str], str]
    """The address of the same page for another feature."""

    @property
    def index(self) -> Index:
        """The open index."""
        return self.chosen.index

    @property
    def labels(self) -> Labels:
        """The run's labels."""
        return self.chosen.labels


def feature_linker() -> Callable[[int | str], str]:
    """What spells the same page's address for another feature: what belongs to one feature only is left behind."""
    to = address.linker(**dict.fromkeys(address.OF_FEATURE))
    return lambda feature: to(f=feature)
