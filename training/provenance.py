"""Compare the recorded inputs of artefacts."""

from itertools import zip_longest
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A leaf where two nested values differ."""

    path: str
    was: Any
    now: Any

    def __str__(self) -> str:
        """The difference as part of a message."""
        return f"{self.path} was {self.was!r}, is {self.now!r}"


def first_difference(there: Any, asked: Any, path: str = "") -> Difference | None:
    """The first leaf where two JSON-able values differ; None if they are equal."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(there, dict) and isinstance(asked, dict):
        pairs = [(key, there.get(key), asked.get(key)) for key in sorted({*there, *asked})]
    elif isinstance(there, list | tuple) and isinstance(asked, list | tuple):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip_longest(there, asked))]
    elif there != asked:
        return Difference(path, there, asked)
    found = (first_difference(a, b, f"{path}.{key}".lstrip(".")) for key, a, b in pairs)
    return next(filter(None, found), None)
