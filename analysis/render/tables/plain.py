"""Plain HTML tables and legends that inherit their colours. All text is escaped."""

from collections.abc import Sequence

from analysis.render.palette import style
from analysis.render.text import attribute, inner

_CELL = (
    "padding:0.3rem 0.8rem 0.3rem 0;text-align:left;vertical-align:top;overflow-wrap:anywhere;min-width:6rem;border:none;"
)
_RULE = "border-bottom:1px solid color-mix(in srgb,currentColor 18%,transparent);"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """A plain table; the first column holds row headers.

    Args:
        header: one text per column.
        rows: rows of as many texts.
        caption: description for screen readers.
    """
    assert all(len(row) == len(header) for row in rows), "a row is longer or shorter than the header"
    head = "".join(f'<th scope="col" style="{_CELL}{_RULE}font-weight:600">{_text(text)}</th>' for text in header)
    body = "".join(f'<tr style="{_RULE}">{_row(row)}</tr>' for row in rows)
    return (
        f'<div style="overflow-x:auto" tabindex="0" role="region" aria-label="{attribute(caption, spaces=False)}">'
        '<table style="border-collapse:collapse;width:100%;font-size:0.875rem">'
        f'<caption style="position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)">'
        f"{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[str]) -> str:
    first = f'<th scope="row" style="{_CELL}font-weight:400;opacity:0.75">{_text(row[0])}</th>'
    return first + "".join(f'<td style="{_CELL}font-variant-numeric:tabular-nums">{_text(c)}</td>' for c in row[1:])


def _text(text: str) -> str:
    return inner(text, limit=None) if text else ""


def legend(names: Sequence[str], styles: Sequence[int]) -> str:
    """A shared legend for several figures: names with their palette styles."""
    items = "".join(_item(i, name) for i, name in zip(styles, names, strict=True))
    return f'<div role="list" style="display:flex;flex-wrap:wrap;gap:0.2rem 1.4rem;font-size:0.875rem">{items}</div>'


def _item(i: int, name: str) -> str:
    colour, dash, _ = style(i)
    line = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "double"}[dash]
    swatch = f"display:inline-block;width:1.5rem;border-top:3px {line} {colour};vertical-align:middle"
    return (
        f'<span role="listitem" style="overflow-wrap:anywhere"><span aria-hidden="true" style="{swatch}"></span> '
        f"{_text(name)}</span>"
    )
