"""Read prompt pairs from a file: JSON Lines, one object per line with the keys clean, corrupt, right, wrong.

    {"clean": "The cat", "corrupt": "The cats", "right": " is", "wrong": [" are", " were"]}

`corrupt` and `wrong` are optional, and a single answer needs no list.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from analysis.circuits.tasks.task import Pair
from sae.errors import SaescopeError
from sae.io.paths import user_path

_PAIR = TypeAdapter(Pair)


def read_pairs(path: str | Path) -> tuple[Pair, ...]:
    """Read the pairs of a file; blank lines are skipped.

    Raises:
        SaescopeError: no such file, an invalid line, or no pairs.
    """
    path = user_path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SaescopeError(f"{path} cannot be read ({error}); pairs are JSON Lines in UTF-8.") from None
    pairs = tuple(_pair(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip())
    if not pairs:
        raise SaescopeError(f"{path} contains no pairs; write an object with clean, corrupt, right and wrong on each line.")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise SaescopeError(f"{where} is not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(fields, dict):
        raise SaescopeError(f"{where} is not an object with the keys clean, corrupt, right, wrong.")
    try:
        return _PAIR.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = "; the keys are clean, corrupt, right, wrong" if first["type"].startswith("unexpected") else ""
        raise SaescopeError(f"{where}: {key}: {first['msg']}{known}.") from None
