"""Colour-blind-safe colours and line styles for light and dark backgrounds."""

import itertools
from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette without black and yellow, which are invisible on a dark or light background."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x")


def style(i: int) -> tuple[str, str, str]:
    """Colour, dash and marker of the i-th curve; the first 24 combinations of colour and dash are distinct."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]


def fade(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour with opacity, as a CSS colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def places(before: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Assign a style to each curve so that curves keep their style when others come or go.

    Args:
        before: styles of the last draw.
        names: curves to draw now; new ones get the lowest free styles.
    """
    kept = {name: before[name] for name in names if name in before}
    taken = set(kept.values())
    free = (i for i in itertools.count() if i not in taken)
    return {name: kept[name] if name in kept else next(free) for name in names}
