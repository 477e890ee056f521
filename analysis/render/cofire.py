"""Where two features fire: one text with the first feature as ground and the second as a bar under the tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.render.feature import Link, reference
from analysis.render.text import attribute, count, inner, number
from analysis.render.tokens import REST, level, run_together

if TYPE_CHECKING:
    from analysis.index.types import Both, Example
    from analysis.labels.names import Name


def both(found: "Both", a: int, b: int, names: "Mapping[int, Name]", link: Link = lambda _: None) -> str:
    """Counts, what is drawn how, and the stretches in which both fire."""
    title = f"{reference(a, names, link)} and {reference(b, names, link)}"
    if not found.total_contexts:
        return f'<div class="sx"><p>{title}: no context in which both fire.</p></div>'
    scales = [max(abs(pair[i].values[j]) for pair in found.examples for j in range(len(pair[i].values))) if found.examples
              else 1.0 for i in (0, 1)]
    rows = "".join(_pair(first, second, scales[0], scales[1]) for first, second in found.examples)
    return (
        f'<div class="sx"><p>{title}: both in {count(found.total_contexts, "context")}, at the same token '
        f"{count(found.total_rows, 'time')}.</p>"
        f'<p class="sx-legend"><bdi class="sx-p7">#{a}</bdi> <bdi class="sx-b7">#{b}</bdi> '
        f'<bdi class="sx-p7 sx-b7">both</bdi></p>{rows}</div>'
    )


def _pair(first: "Example", second: "Example", scale_a: float, scale_b: float) -> str:
    assert (first.seq, first.start, first.pieces) == (second.seq, second.start, second.pieces), "two different stretches"
    place = f"context {first.seq:,}, token {first.position:,}"
    spans = run_together(
        _token(piece, (first.feature, va, level(va, scale_a)), (second.feature, vb, level(vb, scale_b)))
        for piece, va, vb in zip(first.pieces, first.values, second.values, strict=True)
    )
    return (
        f'<div class="sx-ex" role="group" data-at="{first.seq}.{first.position}" aria-label="{place}">'
        f'<span class="sx-val" title="{place}">'
        f"{number(first.value)}<br>{number(second.value)}</span><div class=\"sx-heat\" role=\"list\">{spans}</div></div>"
    )


def _token(piece: str, a: tuple[int, float, int], b: tuple[int, float, int]) -> tuple[bool, str]:
    active = [one for one in (a, b) if one[2]]
    if not active:
        return False, inner(piece) if piece else ""
    classes = [f"sx-{'p' if a[1] > 0 else 'n'}{a[2]}"] if a[2] else []
    classes += [f"sx-b{b[2]}"] if b[2] else []
    said = " · ".join(f"#{feature} {number(value)}" for feature, value, _ in active)
    return True, (
        f'<bdi class="{" ".join(classes)}" role="listitem" data-v="{said}" aria-label="{attribute(piece or REST)}, {said}">'
        f"{inner(piece or REST)}</bdi>"
    )
