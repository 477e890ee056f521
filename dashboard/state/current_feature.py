"""Where the page Feature stands: one feature of a run, and the links from it."""

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from analysis.index import Index
from analysis.index.types import Example
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

    def widened(self, example: Example) -> Example:
        """The example with its whole context, if the URL says that it is open."""
        if f"{example.seq}.{example.position}" not in st.query_params.get_all("open"):
            return example
        whole = self.index.n_ctx
        return self.index.window(self.feature, example.seq, example.position, before=whole, after=whole)


def feature_linker() -> Callable[[int | str], str]:
    """What spells the same page's address for another feature: what belongs to one feature only is left behind."""
    to = address.linker(open=None, strength=None, also=None)
    return lambda feature: to(f=feature)
