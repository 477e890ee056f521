"""Colours and line styles that people with any colour vision can tell apart, on light and on dark ground."""

import itertools
from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, without black and yellow, which vanish on one of the two grounds; the strongest first."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x")


def style(i: int) -> tuple[str, str, str]:
    """Colour, dash and marker of the i-th of several curves; no two of the first 24 agree in colour and dash."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]


def fade(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour with an opacity, as CSS writes it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def places(before: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """A style for each of several curves, such that one that had a style keeps it whoever comes or goes.

    Args:
        before: the styles of those that were drawn last.
        names: those that are drawn now; new ones get the lowest that are free.
    """
    kept = {name: before[name] for name in names if name in before}
    taken = set(kept.values())
    free = (i for i in itertools.count() if i not in taken)
    return {name: kept[name] if name in kept else next(free) for name in names}
