"""Co-firing of two features: text with the first feature as background and the second as a bar under the tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.render import picture
from analysis.render.text import attribute, count, inner, number
from analysis.render.tokens import REST, level, run_together, token_list

if TYPE_CHECKING:
    from analysis.index.types import Both, Example


def both(found: "Both", a: str, b: str, marks: tuple[str, str]) -> str:
    """Counts, a legend, and examples in which both fire.

    Args:
        found: counts and examples.
        a: the first feature's number and name as HTML (`analysis.render.feature.reference`).
        b: the second's.
        marks: short names next to values.
    """
    title = f"{a} and {b}"
    if not found.total_contexts:
        return f'<div class="sx"><p>{title}: no context in which both fire.</p></div>'
    scales = [max(abs(pair[i].values[j]) for pair in found.examples for j in range(len(pair[i].values))) if found.examples
              else 1.0 for i in (0, 1)]
    rows = "".join(_pair(first, second, scales, marks) for first, second in found.examples)
    return (
        f'<div class="sx"><p>{title}: both in {count(found.total_contexts, "context")}, at the same token '
        f"{count(found.total_rows, 'time')}.</p>"
        f'<p class="sx-legend"><bdi class="sx-p7">{inner(marks[0])}</bdi> <bdi class="sx-b7">{inner(marks[1])}</bdi> '
        f'<bdi class="sx-p7 sx-b7">both</bdi></p>{rows}</div>'
    )


def _pair(first: "Example", second: "Example", scales: Sequence[float], marks: tuple[str, str]) -> str:
    assert (first.seq, first.start, first.pieces) == (second.seq, second.start, second.pieces), "two different windows"
    place = f"context {first.seq:,}, token {first.position:,}"
    grounds = [_ground((marks[0], va, level(va, scales[0])), (marks[1], vb, level(vb, scales[1])))
               for va, vb in zip(first.values, second.values, strict=True)]
    tile = ""
    if first.picture is None:
        spans = run_together(_token(piece, *ground) for piece, ground in zip(first.pieces, grounds, strict=True))
        seen = token_list(spans)
    else:
        tile, seen = " sx-tile", picture.marked(first.picture, grounds)
    return (
        f'<div class="sx-ex{tile}" role="group" data-at="{first.seq}.{first.position}" aria-label="{place}">'
        f'<span class="sx-val" title="{place}">'
        f"{number(first.value)}<br>{number(second.value)}</span>{seen}</div>"
    )


def _ground(a: tuple[str, float, int], b: tuple[str, float, int]) -> tuple[str, str]:
    """CSS classes and tooltip of a token, from both features' (mark, value, level); "" if neither fires."""
    active = [one for one in (a, b) if one[2]]
    classes = [f"sx-{'p' if a[1] > 0 else 'n'}{a[2]}"] if a[2] else []
    classes += [f"sx-b{b[2]}"] if b[2] else []
    said = attribute(" · ".join(f"{mark} {number(value)}" for mark, value, _ in active), spaces=False, limit=None)
    return " ".join(classes), said


def _token(piece: str, classes: str, said: str) -> tuple[bool, str]:
    if not classes:
        return False, inner(piece, breaks=True) if piece else ""
    return True, (
        f'<bdi class="{classes}" role="listitem" data-v="{said}" aria-label="{attribute(piece or REST)}, {said}">'
        f"{inner(piece or REST, breaks=True)}</bdi>"
    )
