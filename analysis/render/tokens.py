"""Token heat maps: text with each token's value of a feature as the depth of its ground.

Colour never carries the sign alone: positive values are blue over a solid line, negative ones orange over a dashed line.
The text keeps the colour of its surroundings and the grounds are translucent, so that one HTML serves light and dark.
Depths come in ten classes rather than as a style each, which keeps a window of 32 tokens below a kilobyte.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from analysis.render import picture
from analysis.render.text import attribute, inner, number, shown

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


def _kind(value: float, scale: float) -> str:
    """The class of a value's ground, without its prefix."""
    return ("p" if value > 0 else "n") + str(level(value, scale))


def heat(
    pieces: Sequence[str], values: Sequence[float], *, scale: float, peak: int | None = None, focus_all: bool = False,
    limit: int | None = 64, near: range | None = None,
) -> str:
    """A text whose tokens lie on grounds as deep as their values.

    Args:
        pieces: the tokens' text.
        values: one each, 0 where the feature is inactive.
        scale: the absolute value that gets the deepest ground; a feature's largest, so that examples compare.
        peak: the token to outline.
        focus_all: let the keyboard reach every active token rather than the peak only.
        limit: characters shown of one token.
        near: tokens that are seen at first, without the indentation that their lines share; the others show, and the
            indentation comes back, in an element of class `sx-wide`. None for all, as they are.
    """
    assert len(pieces) == len(values), (len(pieces), len(values))
    cut = indentation(pieces, values, near) if near is not None else {}
    spans = [
        _token(piece, float(value), scale, is_peak=i == peak, focus=focus_all or i == peak, limit=limit, cut=cut.get(i, ()))
        for i, (piece, value) in enumerate(zip(pieces, values, strict=True))
    ]
    seen = near if near is not None else range(len(spans))
    far = [run_together(part) for part in (spans[: seen.start], spans[seen.stop :])]
    before, after = (f'<span class="sx-far">{part}</span>' if part else "" for part in far)
    return f'<div class="sx-heat" role="list">{before}{run_together(spans[seen.start : seen.stop])}{after}</div>'


def indentation(pieces: Sequence[str], values: Sequence[float], near: range) -> dict[int, list[tuple[int, int]]]:
    """The indentation that all lines begun within `near` share, as stretches of characters of their tokens.

    Blank lines do not count. Characters of active tokens are never cut.
    """
    lines: list[list[tuple[int, int]]] = []  # the leading blanks of each line, as (token, character)
    blanks: list[tuple[int, int]] | None = None  # of the line that is being read, None behind them
    for i in near:
        for j, char in enumerate(pieces[i]):
            if char == "\n":
                blanks = []
            elif blanks is not None and char in " \t":
                blanks.append((i, j))
            elif blanks is not None:
                lines.append(blanks)
                blanks = None
    common = min(map(len, lines), default=0)
    out: dict[int, list[tuple[int, int]]] = {}
    for i, j in (place for line in lines for place in line[:common] if not values[place[0]]):
        stretches = out.setdefault(i, [])
        if stretches and stretches[-1][1] == j:
            stretches[-1] = (stretches[-1][0], j + 1)
        else:
            stretches.append((j, j + 1))
    return out


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
    piece: str, value: float, scale: float, *, is_peak: bool, focus: bool, limit: int | None,
    cut: Sequence[tuple[int, int]] = (),
) -> tuple[bool, str]:
    depth = level(value, scale)
    if not depth and not is_peak:
        return False, _text(piece, limit, cut)
    piece = piece or REST
    kind = _kind(value, scale) if depth else "z"
    said = number(value)
    return True, (
        f'<bdi class="sx-{kind}{" sx-peak" if is_peak else ""}" role="listitem"{" tabindex=0" if focus else ""} '
        f'data-v="{said}" aria-label="{attribute(piece, limit=limit)}, {said}">{_text(piece, limit, cut)}</bdi>'
    )


def _text(piece: str, limit: int | None, cut: Sequence[tuple[int, int]]) -> str:
    """A token's text; stretches of indentation are elements of their own, which the style sheet hides."""
    if not cut:
        return _uncut(piece, limit)
    parts, at = [], 0
    for start, stop in cut:
        parts += [piece[at:start], piece[start:stop]]
        at = stop
    html = [_uncut(part, limit) for part in (*parts, piece[at:])]
    return "".join(f'<span class="sx-in">{part}</span>' if i % 2 else part for i, part in enumerate(html))


@lru_cache(maxsize=1 << 15)  # most tokens of a page are the same few
def _uncut(piece: str, limit: int | None) -> str:
    return inner(piece, limit=limit, breaks=True) if piece else ""


def example(example: "Example", scale: float, *, reach: tuple[int, int] | None = None) -> str:
    """One example: its value and token at the peak, where it comes from, and its window; an image is seen whole.

    Args:
        example: a stretch of a context.
        scale: as of `heat`.
        reach: tokens before and behind the peak that are seen before the example is widened; None for all.
    """
    peak = example.position - example.start
    place = f"context {example.seq}, token {example.position}"
    n = len(example.pieces)
    near = range(max(0, peak - reach[0]), min(n, peak + reach[1] + 1)) if reach else range(n)
    token = shown(example.pieces[peak] or REST, spaces=not example.pieces[peak].strip(" "), limit=16)
    kind = "sx-ex"
    if example.picture is None:
        seen = heat(example.pieces, example.values, scale=scale, peak=peak, near=near)
    else:
        kind, token = "sx-ex sx-tile", shown(example.picture.name, limit=16)
        marks = [(f"sx-{_kind(value, scale)}", number(value)) if value else ("", "") for value in example.values]
        seen = picture.marked(example.picture, marks, peak=peak)
    return (
        f'<div class="{kind}" role="group" data-at="{example.seq}.{example.position}" data-value="{example.value:.6g}" '
        f'aria-label="{place}"><span class="sx-val sx-peaked" title="{place}"><small>{token}</small>'
        f"{number(example.value)}</span>{seen}</div>"
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
