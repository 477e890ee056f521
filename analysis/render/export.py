"""A self-contained HTML file with one or several features: needs no Python, network or JavaScript."""

from collections.abc import Sequence

from analysis.render.css import CSS
from analysis.render.feature import Card, card
from analysis.render.text import attribute, shown

# defence in depth: the browser blocks anything a text might inject
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_PAGE = """:root{color-scheme:light dark}
body{margin:0 auto;padding:1.5rem;max-width:80rem;font-family:system-ui,sans-serif;background:Canvas;color:CanvasText}
nav ul{columns:18rem;padding:0 0 0 1.2rem;margin:.5rem 0 1.5rem}
article{border-top:2px solid color-mix(in srgb,currentColor 30%,transparent);padding-top:1rem;margin-top:2rem}
@media print{article{break-inside:avoid-page}}
"""


def page(cards: Sequence[Card], title: str) -> str:
    """The complete file; features in it link to each other."""
    here = {one.feature.feature for one in cards}

    def link(feature: int) -> str | None:
        return f"#f{feature}" if feature in here else None

    body = "".join(f'<div id="f{one.feature.feature}">{card(one, link)}</div>' for one in cards)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{attribute(title, spaces=False, limit=200)}</title><style>{_PAGE}{CSS}</style></head>"
        f"<body><h1>{shown(title, limit=200)}</h1>{_contents(cards)}<main>{body}</main></body></html>\n"
    )


def _contents(cards: Sequence[Card]) -> str:
    if len(cards) < 2:
        return ""
    items = "".join(
        f'<li><a href="#f{one.feature.feature}">#{one.feature.feature}</a> '
        f"{shown(one.label.text, limit=100) if one.label else ''}</li>" for one in cards
    )
    return f'<nav aria-label="Features"><ul>{items}</ul></nav>'
