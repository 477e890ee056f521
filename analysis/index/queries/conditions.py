"""Conditions over the statistics of features as people type them: `density > 0.1%, kurtosis >= 5, dead = false`.

They come from addresses that anybody may send, so they are not SQL: each is a column, a comparison and a number, and
what DuckDB gets is spelt here.
"""

import difflib
import re
from collections.abc import Sequence

from sae.errors import SaescopeError

_TERM = re.compile(r"([a-z_]\w*)\s*(<=|>=|!=|<|>|=)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%?)", re.IGNORECASE)
_FLAG = re.compile(r"([a-z_]\w*)\s*=\s*(true|false|yes|no)", re.IGNORECASE)


def condition(text: str, columns: Sequence[str]) -> str | None:
    """A condition for `Index.top`; None for an empty text.

    Args:
        text: comparisons with `,` or `and` between them; a percent sign divides by 100.
        columns: those that there are.

    Raises:
        SaescopeError: a part is no comparison, or names no column.
    """
    parts = [part.strip() for part in re.split(r",|&|\band\b", text, flags=re.IGNORECASE)]
    return " AND ".join(_term(part, columns) for part in parts if part) or None


def _term(part: str, columns: Sequence[str]) -> str:
    if flag := _FLAG.fullmatch(part):
        return f'"{_column(flag[1], columns)}" = {flag[2].lower() in ("true", "yes")}'
    found = _TERM.fullmatch(part)
    if found is None:
        raise SaescopeError(f"“{part}” is no condition; write a column, a comparison and a number: density > 0.1%.")
    name, comparison, number, percent = found.groups()
    return f'"{_column(name, columns)}" {comparison} {float(number) / (100 if percent else 1)!r}'


def _column(name: str, columns: Sequence[str]) -> str:
    if name.lower() in columns:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(columns)}."
    raise SaescopeError(f"features have no “{name}”; {hint}")
