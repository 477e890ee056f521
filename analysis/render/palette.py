"""Colours and line styles that people with any colour vision can tell apart, on light and on dark ground."""

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
