"""The Feature page's current feature and its links."""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.index import Index
from analysis.labels.store import Labels
from dashboard.state import address
from dashboard.state.selection import Selection


@dataclass(frozen=True)
class CurrentFeature:
    """A feature of the selected run."""

    chosen: Selection
    feature: int
    go: Callable[[int | str], str]
    """URL of the same page for another feature."""

    @property
    def index(self) -> Index:
        """The open index."""
        return self.chosen.index

    @property
    def labels(self) -> Labels:
        """The run's labels."""
        return self.chosen.labels


def feature_linker() -> Callable[[int | str], str]:
    """A function that returns this page's URL for another feature, without the keys in `address.OF_FEATURE`."""
    to = address.linker(**dict.fromkeys(address.OF_FEATURE))
    return lambda feature: to(f=feature)
