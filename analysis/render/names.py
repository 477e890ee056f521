"""A feature's name as HTML or plain text: its label, else chips of the tokens that it fires on."""

from html import escape
from typing import TYPE_CHECKING

from analysis.render.text import plain, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.index.types import TokenShare
    from analysis.labels.names import Name

LIMIT = 80
"""Maximum characters of a label."""
TOKEN_LIMIT = 16
LEAST = 0.05
"""Minimum share of active rows for a token to be shown; the first is always shown."""


def name(of: "Name") -> str:
    """The label, else the tokens; "" if neither is known."""
    return shown(of.label, limit=LIMIT) if of.label else chips(of.fires_on)


def chips(fires_on: "Sequence[TokenShare]") -> str:
    """Tokens with their shares, such as `False 61 %`."""
    return " ".join(
        f'<span class="sx-chip">{shown(one.text, spaces=not one.text.strip(" "), limit=TOKEN_LIMIT)} '
        f"<small>{_share(one.share)}</small></span>" for one in telling(fires_on)
    )


def text(of: "Name", limit: int = LIMIT) -> str:
    """The name as plain text for an attribute, a title or a terminal."""
    if of.label:
        return plain(of.label, limit=limit)
    return ", ".join(
        f"{plain(one.text, spaces=not one.text.strip(' '), limit=TOKEN_LIMIT)} {_share(one.share)}"
        for one in telling(of.fires_on))


def attribute(of: "Name") -> str:
    """The name as an HTML attribute value, without quotes."""
    return escape(text(of), quote=True)


def telling(fires_on: "Sequence[TokenShare]") -> "list[TokenShare]":
    """The informative tokens: the first, and other frequent ones."""
    return [one for i, one in enumerate(fires_on) if not i or one.share >= LEAST]


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"
