"""Conditions over the statistics of features as people type them: `density > 0.1%, dead = false, top_token = " the"`.

They come from addresses that anybody may send, so they are not SQL: each is a column, a comparison and a value, and
what DuckDB gets is spelt here.
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
"""Columns that hold texts."""
FLAGS = {"true": True, "yes": True, "false": False, "no": False}


def condition(text: str, columns: Sequence[str], texts: Collection[str] = TEXTS) -> str | None:
    """A condition for `Index.top`; None for an empty text.

    Args:
        text: comparisons with `,` or `and` between them. A percent sign divides by 100. Texts are equal or not: one in
            double quotes, which is a JSON string, to the last space; one without whatever spaces are around it.
        columns: those that there are.
        texts: which of them hold texts.

    Raises:
        SaescopeError: a part is no comparison, or names no column, or compares it with what it cannot be compared with.
    """
    return " AND ".join(_term(part, columns, texts) for part in map(str.strip, _parts(text)) if part) or None


def _parts(text: str) -> list[str]:
    """What lies between commas, & and "and" that are not inside of quotes."""
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
            f"“{part}” is no condition; write a column, a comparison and a value: density > 0.1%, or top_token = \" the\".")
    name, comparison, value = _column(found[1], columns), found[2], found[3].strip()
    if name in texts:
        return _text(name, comparison, value)
    if comparison == "=" and value.lower() in FLAGS:
        return f'"{name}" = {FLAGS[value.lower()]}'
    if (number := _NUMBER.fullmatch(value)) is None:
        raise SaescopeError(f"“{value}” is no number, and {name} holds numbers: {name} {comparison} 0.5.")
    return f'"{name}" {comparison} {float(number[1]) / (100 if number[2] else 1)!r}'


def _text(name: str, comparison: str, value: str) -> str:
    if comparison not in ("=", "!="):
        raise SaescopeError(f"{name} holds texts, which are equal or not: {name} = {value}.")
    column = f'"{name}"'
    if value.startswith('"'):
        try:
            value = json.loads(value)
        except ValueError:
            raise SaescopeError(f"{value} is no text in quotes; within them write \\\\ for \\ and \\\" for \".") from None
    else:
        column = f"trim({column})"
    spelt = value.encode("utf-8", "replace").decode().replace("'", "''").replace("\x00", "' || chr(0) || '")
    return f"{column} {comparison} ('{spelt}')"


def _column(name: str, columns: Sequence[str]) -> str:
    if name.lower() in columns:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(columns)}."
    raise SaescopeError(f"features have no “{name}”; {hint}")
