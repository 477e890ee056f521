"""Parse user filters on feature statistics, such as `density > 0.1%, dead = false, top_token = " the"`.

They come from URLs, which are untrusted, so they are not SQL: each term is a column, a comparison and a value, and the
DuckDB condition is built here.
"""

import difflib
import json
import re
from collections.abc import Collection, Sequence

from sae.errors import SaescopeError

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TERM = re.compile(rf"([a-z_]\w*)\s*(<=|>=|!=|<|>|=)\s*({_QUOTED}|.+)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%?)", re.IGNORECASE)
_BETWEEN = re.compile(rf"({_QUOTED})|,|&|\band\b", re.IGNORECASE)
TEXTS = ("top_token", "promoted_token")
"""Text columns."""
FLAGS = {"true": True, "yes": True, "false": False, "no": False}


def condition(text: str, columns: Sequence[str], texts: Collection[str] = TEXTS) -> str | None:
    """Translate a filter into a condition for `Index.top`; None if the text is empty.

    Args:
        text: comparisons separated by `,` or `and`. A percent sign divides by 100. Text columns support = and != only: a
            value in double quotes is a JSON string and must match exactly; without quotes, surrounding spaces are ignored.
        columns: existing columns.
        texts: the text columns among them.

    Raises:
        SaescopeError: a term is not a comparison, its column doesn't exist, or its value has the wrong type.
    """
    return " AND ".join(_term(part, columns, texts) for part in map(str.strip, _parts(text)) if part) or None


def _parts(text: str) -> list[str]:
    """Split at commas, & and "and" outside quotes."""
    parts, begun = [], 0
    for found in _BETWEEN.finditer(text):
        if found[1] is None:
            parts.append(text[begun : found.start()])
            begun = found.end()
    return [*parts, text[begun:]]


def _term(part: str, columns: Sequence[str], texts: Collection[str]) -> str:
    found = _TERM.fullmatch(part)
    if found is None:
        raise SaescopeError(
            f"“{part}” is not a condition; give column, operator and value: density > 0.1%, or top_token = \" the\".")
    name, comparison, value = _column(found[1], columns), found[2], found[3].strip()
    if name in texts:
        return _text(name, comparison, value)
    if comparison == "=" and value.lower() in FLAGS:
        return f'"{name}" = {FLAGS[value.lower()]}'
    if (number := _NUMBER.fullmatch(value)) is None:
        raise SaescopeError(f"“{value}” is not a number, but {name} is numeric; write for example {name} {comparison} 0.5.")
    return f'"{name}" {comparison} {float(number[1]) / (100 if number[2] else 1)!r}'


def _text(name: str, comparison: str, value: str) -> str:
    if comparison not in ("=", "!="):
        raise SaescopeError(f"{name} is a text column, which supports only = and !=: {name} = {value}.")
    column = f'"{name}"'
    if value.startswith('"'):
        try:
            value = json.loads(value)
        except ValueError:
            raise SaescopeError(f"{value} is not a quoted text; inside quotes write \\\\ for \\ and \\\" for \".") from None
    else:
        column = f"trim({column})"
    spelt = value.encode("utf-8", "replace").decode().replace("'", "''").replace("\x00", "' || chr(0) || '")
    return f"{column} {comparison} ('{spelt}')"


def _column(name: str, columns: Sequence[str]) -> str:
    if name.lower() in columns:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"columns are {', '.join(columns)}."
    raise SaescopeError(f"there is no column “{name}”; {hint}")
