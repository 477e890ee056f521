"""Rows of a corpus, from JSON lines or a dataset: which field is the text, or the messages of a conversation."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae.errors import SaescopeError, first_line
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.files import lines, names


class Row(NamedTuple):
    """One row, and what it is called."""

    fields: dict[str, Any]
    where: str
    """For errors: the file and line, or the row."""
    label: str


def jsonl_rows(files: Sequence[Path]) -> Iterator[Row]:
    """The objects of JSON lines files, one a line."""
    for path, name in zip(files, names(files), strict=True):
        for number, line in lines(path):
            if line.strip():
                yield Row(_object(line, path, number), f"{path}, line {number}", f"{name}:{number}")


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SaescopeError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or as many brackets
        raise SaescopeError(f"{path}, line {number}: more than is read as JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise SaescopeError(f"{path}, line {number}: a JSON object was expected, found {type(value).__name__}.")
    return value


def from_rows(rows: Iterable[Row], source: TextSource) -> Iterator[Document]:
    """The documents of rows; a row whose text is null is passed over."""
    for row in rows:
        for name in (source.field, source.label_field):
            if name is not None and name not in row.fields:
                raise SaescopeError(f"{row.where}: no field {name!r}; it has {', '.join(row.fields) or 'none'}.")
        value = row.fields[source.field]
        label = row.label if source.label_field is None else str(row.fields[source.label_field])
        if source.chat_roles is not None and value is not None:
            messages = _messages(value, row.where, source.field)
            text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
            yield Document(text, label, messages=messages, roles=source.chat_roles)
        elif isinstance(value, str):
            yield Document(value, label)
        elif value is not None:
            hint = "; for messages set chat_roles, such as [assistant]" if isinstance(value, list) else ""
            raise SaescopeError(f"{row.where}: {source.field!r} is no text but a {type(value).__name__}{hint}.")


def _messages(value: Any, where: str, field: str) -> tuple[dict[str, str], ...]:
    good = isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
    if not good:
        raise SaescopeError(
            f"{where}: {field!r} does not hold messages; chat_roles needs a list of objects with role and content, "
            f"both text."
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)
