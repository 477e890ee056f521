"""Token heat maps: text with a feature's value at each token as background shade.

The sign never depends on colour alone: positive values are blue with a solid underline, negative ones orange with a dashed
one. Text colour is inherited and backgrounds are translucent, so the HTML works in light and dark themes. Shades are ten
CSS classes rather than inline styles, which keeps a window of 32 tokens below a kilobyte.
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
"""Shown for an active token that is a later part of a character made of several tokens."""
MAX_ALPHA = 0.6
"""Opacity of the darkest shade: text on it keeps a contrast of 4.5 to 1 in both themes."""


def level(value: float, scale: float) -> int:
    """The shade of a value, 1 to `LEVELS`; 0 only for zero and non-finite values."""
    if not value or not math.isfinite(value):
        return 0
    return max(1, min(LEVELS, math.ceil(LEVELS * abs(value) / scale))) if scale > 0 else 1


def _kind(value: float, scale: float) -> str:
    """The CSS class of a value's shade, without prefix."""
    return ("p" if value > 0 else "n") + str(level(value, scale))


def heat(
    pieces: Sequence[str], values: Sequence[float], *, scale: float, peak: int | None = None, focus_all: bool = False,
    limit: int | None = 64, near: range | None = None,
) -> str:
    """Render text with each token shaded by its value.

    Args:
        pieces: the tokens' text.
        values: one value per token, 0 where inactive.
        scale: |value| with the darkest shade; use the feature's largest, so that examples are comparable.
        peak: the token to outline.
        focus_all: make every active token focusable, not only the peak.
        limit: maximum characters per token.
        near: tokens shown at first, with common indentation removed; an element of class `sx-wide` shows everything.
            None shows all tokens unchanged.
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
    return token_list(f"{before}{run_together(spans[seen.start : seen.stop])}{after}")


def token_list(html: str) -> str:
    """Wrap the HTML of tokens in their container: a list to screen readers if any token is an item of its own."""
    role = ' role="list"' if 'role="listitem"' in html else ""
    return f'<div class="sx-heat"{role}>{html}</div>'


def indentation(pieces: Sequence[str], values: Sequence[float], near: range) -> dict[int, list[tuple[int, int]]]:
    """The common indentation of all lines that start within `near`, as character spans by token.

    Blank lines are ignored. Characters of active tokens are never removed.
    """
    lines: list[list[tuple[int, int]]] = []  # leading blanks of each line, as (token, character)
    blanks: list[tuple[int, int]] | None = None  # those of the current line; None after them
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
    """Join tokens to HTML, merging runs of unshaded tokens into one text.

    Most tokens are inactive, and an element for each would dominate the browser's layout time.

    Args:
        spans: for each token, whether it is its own element, and its HTML.
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
    """A token's text; indentation spans are separate elements that the style sheet hides."""
    if not cut:
        return _uncut(piece, limit)
    parts, at = [], 0
    for start, stop in cut:
        parts += [piece[at:start], piece[start:stop]]
        at = stop
    html = [_uncut(part, limit) for part in (*parts, piece[at:])]
    return "".join(f'<span class="sx-in">{part}</span>' if i % 2 else part for i, part in enumerate(html))


@lru_cache(maxsize=1 << 15)  # a few tokens make up most of a page
def _uncut(piece: str, limit: int | None) -> str:
    return inner(piece, limit=limit, breaks=True) if piece else ""


def example(example: "Example", scale: float, *, reach: tuple[int, int] | None = None) -> str:
    """One example: value and token at the peak, its origin, and its window. Images are shown whole.

    Args:
        example: a window of a context.
        scale: as for `heat`.
        reach: tokens shown before and after the peak until the example is widened; None for all.
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
    """Legend of the shades, with samples."""
    items = [("p", "positive")] + ([("n", "negative")] if signed else [])
    steps = [
        f'<span><bdi class="sx-{kind}{depth}">{number(sign * scale * depth / LEVELS)}</bdi></span>'
        for kind, _ in items for sign in [1 if kind == "p" else -1] for depth in (1, 4, 7, LEVELS)
    ]
    said = "blue with a solid line: positive" + ("; orange with a dashed line: negative" if signed else "")
    return f'<div class="sx-legend" aria-label="Shading: {said}; the darkest is {number(scale)}">{" ".join(steps)}</div>'
