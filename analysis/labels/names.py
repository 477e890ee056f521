"""What a feature is called wherever it is mentioned: by its label, else by the tokens that it fires on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.index.types import TokenShare

if TYPE_CHECKING:
    from analysis.index import Index


@dataclass(frozen=True)
class Name:
    """A feature's name: `analysis.render.names` shows it."""

    label: str | None = None
    fires_on: tuple[TokenShare, ...] = ()
    """The tokens that it fires on most; of a feature with a label too."""


class Names(Mapping[int, Name]):
    """A name for every feature of an index, looked up when it is asked for."""

    def __init__(self, index: "Index", labels: Mapping[int, str]) -> None:
        """Look up nothing yet.

        Args:
            index: of the features.
            labels: as `Labels.names`.
        """
        self.index, self.labels = index, labels

    def __getitem__(self, feature: int) -> Name:
        """Raises KeyError for a feature that there is not."""
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
        """For each feature its label, else the one token that it fires on most, else "": quick for all of them."""
        stats = self.index.stats
        tokens = stats["top_token"].to_pylist() if "top_token" in stats.column_names else [None] * len(self)
        return [self.labels.get(feature) or token or "" for feature, token in enumerate(tokens)]
