"""Turn rows (JSON lines, Parquet, datasets) into documents, from a field with the text or the messages."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae.errors import SaescopeError, first_line
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.files import lines, names


class Row(NamedTuple):
    """One row with its label."""

    fields: dict[str, Any]
    where: str
    """File and line, or row, for error messages."""
    label: str


def jsonl_rows(files: Sequence[Path]) -> Iterator[Row]:
    """The objects in JSON lines files, one per line."""
    for path, name in zip(files, names(files), strict=True):
        for number, line in lines(path):
            if line.strip():
                yield Row(_object(line, path, number), f"{path}, line {number}", f"{name}:{number}")


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SaescopeError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from None
    except (ValueError, RecursionError) as error:  # an integer with thousands of digits, or deeply nested brackets
        raise SaescopeError(f"{path}, line {number}: not readable as JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise SaescopeError(f"{path}, line {number}: expected a JSON object, found {type(value).__name__}.")
    return value


_ABSENT = object()
_ROLES = {"human": "user", "gpt": "assistant"}
"""Role names in the ShareGPT format, whose messages have `from` and `value`."""


def _value(row: Row, name: str) -> Any:
    """The value of a field; dots reach into objects and lists (`turns.0.text`), unless the whole string is a field.

    Raises:
        SaescopeError: there is no such field.
    """
    if name in row.fields:
        return row.fields[name]
    value: Any = row.fields
    for part in name.split("."):
        if isinstance(value, dict):
            found = value.get(part, _ABSENT)
        else:
            inside = isinstance(value, list) and part.isdecimal() and int(part) < len(value)
            found = value[int(part)] if inside else _ABSENT
        if found is _ABSENT:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else f"no {part!r}"
            raise SaescopeError(f"{row.where}: no field {name!r}; it has {there or 'none'}.")
        value = found
    return value


def from_rows(rows: Iterable[Row], source: TextSource) -> Iterator[Document]:
    """Turn rows into documents; rows with null text are skipped, and a null label is replaced by the row's."""
    for row in rows:
        value = _value(row, source.field)
        named = None if source.label_field is None else _value(row, source.label_field)
        label = row.label if named is None else str(named)
        if source.chat_roles is not None and value is not None:
            messages = _messages(value, row.where, source.field)
            text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
            roles = tuple(_ROLES.get(role, role) for role in source.chat_roles)
            yield Document(text, label, messages=messages, roles=roles)
        elif isinstance(value, str):
            yield Document(value, label)
        elif value is not None:
            hint = "; for messages set chat_roles, such as [assistant]" if isinstance(value, list) else ""
            raise SaescopeError(f"{row.where}: {source.field!r} is not text but a {type(value).__name__}{hint}.")


def _messages(value: Any, where: str, field: str) -> tuple[dict[str, str], ...]:
    messages = [_message(one) for one in value] if isinstance(value, list) else [None]
    if None in messages:
        raise SaescopeError(
            f"{where}: {field!r} does not contain messages; chat_roles needs a list of objects with role and content (or "
            f"from and value), both strings."
        )
    return tuple(message for message in messages if message is not None)


def _message(value: Any) -> dict[str, str] | None:
    """Parse a message in either format; None if it isn't one."""
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(value, dict) and isinstance(value.get(role), str) and isinstance(value.get(content), str):
            return {"role": _ROLES.get(value[role], value[role]), "content": value[content]}
    return None
