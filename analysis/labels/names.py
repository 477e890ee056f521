"""Display names of features: the label, else the tokens that the feature fires on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.index.types import TokenShare

if TYPE_CHECKING:
    from analysis.index import Index


@dataclass(frozen=True)
class Name:
    """A feature's name, rendered by `analysis.render.names`."""

    label: str | None = None
    fires_on: tuple[TokenShare, ...] = ()
    """The tokens it fires on most, also given for labelled features."""


class Names(Mapping[int, Name]):
    """The names of all features of an index, looked up lazily."""

    def __init__(self, index: "Index", labels: Mapping[int, str]) -> None:
        """Look up nothing yet.

        Args:
            index: the features' index.
            labels: output of `Labels.names`.
        """
        self.index, self.labels = index, labels

    def __getitem__(self, feature: int) -> Name:
        """Raises KeyError if the feature doesn't exist."""
        if not 0 <= feature < len(self):
            raise KeyError(feature)
        return Name(self.labels.get(feature), self.index.fires_on(feature))

    def __contains__(self, feature: object) -> bool:
        return isinstance(feature, int) and 0 <= feature < len(self)

    def __len__(self) -> int:
        return self.index.d_sae

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def brief(self) -> list[str]:
        """For each feature its label, else its top token, else ""; fast for all features."""
        stats = self.index.stats
        tokens = stats["top_token"].to_pylist() if "top_token" in stats.column_names else [None] * len(self)
        return [self.labels.get(feature) or token or "" for feature, token in enumerate(tokens)]
