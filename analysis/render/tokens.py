"""Token heat maps: text with each token's value of a feature as the depth of its ground.

Colour never carries the sign alone: positive values are blue over a solid line, negative ones orange over a dashed line.
The text keeps the colour of its surroundings and the grounds are translucent, so that one HTML serves light and dark.
Depths come in ten classes rather than as a style each, which keeps a window of 32 tokens below a kilobyte.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from analysis.render.text import attribute, inner, number

if TYPE_CHECKING:
    from analysis.index.types import Example

LEVELS = 10
REST = "⋯"
"""An active token that is a later part of a character of several tokens, which is shown whole at the first."""
MAX_ALPHA = 0.6
"""Opacity of the deepest ground: text on it keeps a contrast of 4.5 to 1 in both themes."""


def level(value: float, scale: float) -> int:
    """The depth of a value, 1 to `LEVELS`; 0 only for zero (and for what is not a number)."""
    if not value or not math.isfinite(value):
        return 0
    return max(1, min(LEVELS, math.ceil(LEVELS * abs(value) / scale))) if scale > 0 else 1


def heat(
    pieces: Sequence[str], values: Sequence[float], *, scale: float, peak: int | None = None, focus_all: bool = False,
    limit: int | None = 64,
) -> str:
    """A text whose tokens lie on grounds as deep as their values.

    Args:
        pieces: the tokens' text.
        values: one each, 0 where the feature is inactive.
        scale: the absolute value that gets the deepest ground; a feature's largest, so that examples compare.
        peak: the token to outline.
        focus_all: let the keyboard reach every active token rather than the peak only.
        limit: characters shown of one token.
    """
    assert len(pieces) == len(values), (len(pieces), len(values))
    spans = [
        _token(piece, float(value), scale, is_peak=i == peak, focus=focus_all or i == peak, limit=limit)
        for i, (piece, value) in enumerate(zip(pieces, values, strict=True))
    ]
    return f'<div class="sx-heat" role="list">{run_together(spans)}</div>'


def run_together(spans: Iterable[tuple[bool, str]]) -> str:
    """Tokens as one HTML: those with a ground as they are, what lies between them as one piece of text.

    Most tokens are inactive, and an element for each would be most of what a browser has to check, style and lay out.

    Args:
        spans: whether a token is an element of its own, and its HTML.
    """
    parts = []
    for alone, group in groupby(spans, key=lambda span: span[0]):
        text = "".join(html for _, html in group)
        parts.append(text if alone or not text else f"<bdi>{text}</bdi>")
    return "".join(parts)


def _token(
    piece: str, value: float, scale: float, *, is_peak: bool, focus: bool, limit: int | None
) -> tuple[bool, str]:
    depth = level(value, scale)
    if not depth and not is_peak:
        return False, inner(piece, limit=limit) if piece else ""
    piece = piece or REST
    kind = ("p" if value > 0 else "n") + str(depth) if depth else "z"
    shown = number(value)
    return True, (
        f'<bdi class="sx-{kind}{" sx-peak" if is_peak else ""}" role="listitem"{" tabindex=0" if focus else ""} '
        f'data-v="{shown}" aria-label="{attribute(piece, limit=limit)}, {shown}">{inner(piece, limit=limit)}</bdi>'
    )


def example(example: "Example", scale: float, *, focus_all: bool = False) -> str:
    """One example: its value at the peak, where it comes from, and its window."""
    peak = example.position - example.start
    place = f"context {example.seq:,}, token {example.position:,}"
    return (
        f'<div class="sx-ex" role="group" data-at="{example.seq}.{example.position}" aria-label="{place}">'
        f'<span class="sx-val" title="{place}">'
        f"{number(example.value)}</span>"
        f"{heat(example.pieces, example.values, scale=scale, peak=peak, focus_all=focus_all)}</div>"
    )


def legend(scale: float, *, signed: bool) -> str:
    """What the grounds mean, in words beside samples of them."""
    items = [("p", "positive")] + ([("n", "negative")] if signed else [])
    steps = [
        f'<span><bdi class="sx-{kind}{depth}">{number(sign * scale * depth / LEVELS)}</bdi></span>'
        for kind, _ in items for sign in [1 if kind == "p" else -1] for depth in (1, 4, 7, LEVELS)
    ]
    said = "blue over a solid line: positive" + ("; orange over a dashed line: negative" if signed else "")
    return f'<div class="sx-legend" aria-label="Shading: {said}; the deepest is {number(scale)}">{" ".join(steps)}</div>'
