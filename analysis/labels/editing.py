"""Concurrent editing of a feature's texts: merge changes without losing other people's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sae.errors import SaescopeError

LIMITS = {"label": 1_000, "note": 100_000, "tag": 100, "list": 200}
"""Maximum characters of each kind of text."""

Run = Callable[..., list[tuple[Any, ...]]]
"""Runs a query whose first parameter is the weights' hash."""


@dataclass(frozen=True)
class Written:
    """The user's texts for one feature; "" and () if there are none."""

    label: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    """Names of lists that contain the feature."""


class Conflict(SaescopeError):
    """Somebody else changed a text since it was read; nothing was written."""

    def __init__(self, feature: int, fields: Sequence[str], theirs: Written) -> None:
        """Record the conflict.

        Args:
            feature: the feature.
            fields: `label`, `note` or both.
            theirs: the current texts.
        """
        super().__init__(
            f"The {' and the '.join(fields)} of feature {feature} changed after you read it; nothing was written.")
        self.fields, self.theirs = tuple(fields), theirs


def change(run: Run, feature: int, before: Written, after: Written) -> Written:
    """See `Labels.change`; `run` runs queries in one transaction."""
    before, after, there = _tidy(before), _tidy(after), read(run, feature)
    changed = [name for name in ("label", "note") if getattr(before, name) != getattr(after, name)]
    clashes = [name for name in changed if getattr(there, name) not in (getattr(before, name), getattr(after, name))]
    if clashes:
        raise Conflict(feature, clashes, there)
    if "label" in changed:
        _replace_label(run, feature, after.label)
    if "note" in changed:
        _replace_note(run, feature, after.note)
    for tag in {*before.tags} - {*after.tags}:
        run("DELETE FROM tags WHERE weights = ? AND feature = ? AND tag = ?", feature, tag)
    for tag in {*after.tags} - {*before.tags}:
        run("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", feature, text_of("tag", tag))
    for name in {*before.lists} - {*after.lists}:
        run("DELETE FROM lists WHERE weights = ? AND name = ? AND feature = ?", name, feature)
    for name in {*after.lists} - {*before.lists}:
        run("INSERT OR IGNORE INTO lists SELECT ?1, ?2, coalesce(max(place), -1) + 1, ?3 FROM lists "
            "WHERE weights = ?1 AND name = ?2", text_of("list", name), feature)
    return read(run, feature)


def read(run: Run, feature: int) -> Written:
    """Read the user's texts for a feature."""
    label = run("SELECT text FROM labels WHERE weights = ? AND feature = ? AND author = 'you'", feature)
    note = run("SELECT text FROM notes WHERE weights = ? AND feature = ?", feature)
    tags = run("SELECT tag FROM tags WHERE weights = ? AND feature = ? ORDER BY tag", feature)
    lists = run("SELECT name FROM lists WHERE weights = ? AND feature = ? ORDER BY name", feature)
    return Written(label[0][0] if label else "", note[0][0] if note else "", tuple(tag for (tag,) in tags),
                   tuple(name for (name,) in lists))


def _replace_label(run: Run, feature: int, text: str) -> None:
    run("DELETE FROM labels WHERE weights = ? AND feature = ? AND author = 'you'", feature)
    if text:
        run("INSERT INTO labels VALUES (?, ?, 'you', ?, NULL, NULL, '[]', '', ?)", feature, text_of("label", text), now())


def _replace_note(run: Run, feature: int, text: str) -> None:
    run("DELETE FROM notes WHERE weights = ? AND feature = ?", feature)
    if text:
        run("INSERT INTO notes VALUES (?, ?, ?, ?)", feature, text_of("note", text), now())


def _tidy(state: Written) -> Written:
    """Normalise texts to the form that is stored."""

    def names(found: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted({clean(name.strip()) for name in found} - {""}))

    note = clean(state.note)
    return Written(clean(state.label.strip()), note if note.strip() else "", names(state.tags), names(state.lists))


def text_of(kind: str, text: str) -> str:
    """Validate and clean a text for storage.

    Raises:
        SaescopeError: it is empty or too long.
    """
    text = clean(text)
    if not text.strip():
        raise SaescopeError(f"The {kind} is empty; enter some text.")
    if len(text) > LIMITS[kind]:
        raise SaescopeError(f"The {kind} has {len(text):,} characters; the limit is {LIMITS[kind]:,}.")
    return text


def clean(text: str) -> str:
    """Make text storable: lone surrogates become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def now() -> str:
    """The current time as stored: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
