"""A feature's name as HTML and as plain text: its label, else chips of the tokens that it fires on."""

from html import escape
from typing import TYPE_CHECKING

from analysis.render.text import plain, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.index.types import TokenShare
    from analysis.labels.names import Name

LIMIT = 80
"""Characters of a label."""
TOKEN_LIMIT = 16
LEAST = 0.05
"""Share of its active rows below which a token tells little of a feature; the first is shown all the same."""


def name(of: "Name") -> str:
    """The label, else the tokens; "" for a feature of which neither is known."""
    return shown(of.label, limit=LIMIT) if of.label else chips(of.fires_on)


def chips(fires_on: "Sequence[TokenShare]") -> str:
    """Tokens with their shares, as `False 61 %`."""
    return " ".join(
        f'<span class="sx-chip">{shown(one.text, spaces=not one.text.strip(" "), limit=TOKEN_LIMIT)} '
        f"<small>{_share(one.share)}</small></span>" for one in telling(fires_on)
    )


def text(of: "Name", limit: int = LIMIT) -> str:
    """The same for an attribute, a title or a terminal."""
    if of.label:
        return plain(of.label, limit=limit)
    return ", ".join(
        f"{plain(one.text, spaces=not one.text.strip(' '), limit=TOKEN_LIMIT)} {_share(one.share)}"
        for one in telling(of.fires_on))


def attribute(of: "Name") -> str:
    """The same for the value of an attribute, without its quotes."""
    return escape(text(of), quote=True)


def telling(fires_on: "Sequence[TokenShare]") -> "list[TokenShare]":
    """The tokens that say something: the first, and others that are frequent."""
    return [one for i, one in enumerate(fires_on) if not i or one.share >= LEAST]


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"
