"""The index of a run over a corpus: built in one pass, it answers all queries about features.

    from analysis.index import build, open_index
    index = build("runs/quickstart")          # or open_index("runs/quickstart")
    index.feature(12), index.examples(12), index.where(12, 40), index.top("kurtosis")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.index.builder import build
    from analysis.index.read import Index, indexes, open_index

__all__ = ["Index", "build", "indexes", "open_index"]


def __getattr__(name: str):
    """Import lazily: reading an index doesn't need torch."""
    if name == "build":
        from analysis.index.builder import build

        return build
    if name in __all__:
        from analysis.index import read

        return getattr(read, name)
    raise AttributeError(f"module 'analysis.index' has no attribute {name!r}")
