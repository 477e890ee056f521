"""runs/NAME/labels.sqlite: labels, notes, tags and lists, the only artefact edited by users.

Rows are keyed by the weights' hash and the feature, so re-indexing changes nothing, and a run retrained under the same name
doesn't inherit labels of other weights (which stay in the file). Plain SQLite in WAL mode: tables `labels`, `notes`,
`tags`, `lists`. The first write creates the file. Texts are never interpreted; lone surrogates, which can't be encoded, are
stored as U+FFFD.
"""

import json
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.labels import editing
from analysis.labels.editing import Written, clean, now, text_of
from analysis.labels.file import Database, Unreadable
from sae.errors import SaescopeError, first_line
from sae.io.files import read_json
from sae.io.paths import user_path

FILE = "labels.sqlite"

BY_MODEL = "model "
"""Prefix of `method` for labels by a language model, followed by the model and where it runs."""

Author = Literal["you", "auto"]
Place = Literal["label", "note", "tag"]


@dataclass(frozen=True)
class Judged:
    """A held-out example used to score a label."""

    seq: int
    position: int
    start: int
    pieces: list[str]
    values: list[float]
    """The feature's value at each token, for display; not shown to the judge."""
    active: bool
    """Whether the feature is active at `position`."""
    said: bool
    """Whether the label predicts it to be active."""

    @property
    def peak(self) -> int:
        """Index of the judged token in `pieces`."""
        return self.position - self.start


@dataclass(frozen=True)
class Label:
    """A feature's label."""

    feature: int
    text: str
    author: Author = "you"
    score: float | None = None
    """Balanced accuracy of detection on held-out examples, 0 to 1; chance is 0.5."""
    baseline: float | None = None
    """Score of another feature's label on the same examples."""
    judged: Sequence[Judged] = ()
    method: str = ""
    """How an automatic label was created."""
    updated: str = ""
    """Time of the last change, UTC, ISO 8601."""

    @property
    def model(self) -> str:
        """The language model that wrote it and where it runs; "" for other labels."""
        return self.method.removeprefix(BY_MODEL).rpartition(", ")[0] if self.method.startswith(BY_MODEL) else ""


@dataclass(frozen=True)
class Match:
    """A search match."""

    feature: int
    where: Place
    text: str


class Labels:
    """The labels of a run's features. Safe to use from several threads and processes."""

    def __init__(self, run: str | Path, *, weights: str | None = None) -> None:
        """Prepare without opening the file.

        Args:
            run: the run's folder.
            weights: the weights' hash; by default that of the run's trained SAE.

        Raises:
            SaescopeError: the run has no trained SAE.
        """
        run = user_path(run)
        self.path = run / FILE
        self.d_sae: int | None = None
        if weights is None:
            manifest = read_json(run / "final" / "sae.json")
            weights, self.d_sae = manifest.get("weights_sha256"), manifest.get("d_sae")
            if not isinstance(weights, str) or not isinstance(self.d_sae, int):
                raise SaescopeError(f"{run}/final/sae.json names no weights; restore it or retrain.")
        self.weights = weights
        self._file = Database(self.path)

    @property
    def writable(self) -> bool:
        """Whether labels can be saved; existing ones can be read in any case."""
        return self._file.writable

    # -- labels -------------------------------------------------------------------------------------------------------

    def get(self, feature: int) -> Label | None:
        """A feature's label: the user's, else the automatic one."""
        found = self.every(feature)
        return found[0] if found else None

    def every(self, feature: int) -> list[Label]:
        """All labels of a feature, the user's first."""
        return self._labels("AND feature = ?", feature)

    def all(self) -> list[Label]:
        """One label per labelled feature, by feature; the user's take precedence over automatic ones.

        Judged examples, which are most of the file, are omitted; `get` returns them.
        """
        best: dict[int, Label] = {}
        for label in self._labels("", judged="'[]'"):
            best.setdefault(label.feature, label)
        return [best[feature] for feature in sorted(best)]

    def automatic(self) -> list[Label]:
        """All automatic labels, by feature, including those hidden by the user's; without judged examples."""
        return self._labels("AND author = 'auto'", judged="'[]'")

    def names(self) -> dict[int, str]:
        """Feature → label text, for all labelled features."""
        rows = self._read("SELECT feature, text FROM labels WHERE weights = ? ORDER BY author = 'you'")
        return dict(rows)

    def set_label(self, feature: int, text: str) -> None:
        """Set the user's label; an empty text removes it, so that the automatic one shows again."""
        if text.strip():
            self.put([Label(feature, text.strip())])
        else:
            self._write("DELETE FROM labels WHERE weights = ? AND feature = ? AND author = 'you'", self._checked(feature))

    def put(self, labels: Iterable[Label]) -> None:
        """Write labels atomically, each replacing its author's previous label of that feature."""
        written = now()
        rows = [
            (self.weights, self._checked(label.feature), label.author, text_of("label", label.text), label.score,
             label.baseline, _packed(label.judged), clean(label.method), label.updated or written)
            for label in labels
        ]
        with self._file.writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _labels(self, condition: str, *values: object, judged: str = "judged") -> list[Label]:
        rows = self._read(
            f"SELECT feature, text, author, score, baseline, {judged}, method, updated FROM labels "
            f"WHERE weights = ? {condition} ORDER BY feature, author != 'you'", *values,
        )
        return [
            Label(feature, text, author, score, baseline, self._unpacked(feature, examples), method, when)
            for feature, text, author, score, baseline, examples, method, when in rows
        ]

    # -- notes and tags -----------------------------------------------------------------------------------------------

    def note(self, feature: int) -> str:
        """A feature's note, or ""."""
        rows = self._read("SELECT text FROM notes WHERE weights = ? AND feature = ?", feature)
        return rows[0][0] if rows else ""

    def set_note(self, feature: int, text: str) -> None:
        """Set a note; an empty one removes it."""
        if text.strip():
            self._write("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", self._checked(feature), text_of("note", text),
                        now())
        else:
            self._write("DELETE FROM notes WHERE weights = ? AND feature = ?", self._checked(feature))

    def tags(self, feature: int) -> list[str]:
        """A feature's tags, by name."""
        query = "SELECT tag FROM tags WHERE weights = ? AND feature = ? ORDER BY tag"
        return [tag for (tag,) in self._read(query, feature)]

    def all_tags(self) -> dict[str, list[int]]:
        """Every tag and its features."""
        return _grouped(self._read("SELECT tag, feature FROM tags WHERE weights = ? ORDER BY tag, feature"))

    def add_tag(self, feature: int, tag: str) -> None:
        """Tag a feature; no effect if it already has the tag."""
        self._write("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", self._checked(feature), text_of("tag", tag.strip()))

    def remove_tag(self, feature: int, tag: str) -> None:
        """Remove a tag."""
        self._write("DELETE FROM tags WHERE weights = ? AND feature = ? AND tag = ?", self._checked(feature), clean(tag))

    # -- lists --------------------------------------------------------------------------------------------------------

    def lists(self) -> dict[str, list[int]]:
        """Every list and its features, in order of addition."""
        return _grouped(self._read("SELECT name, feature FROM lists WHERE weights = ? ORDER BY name, place, feature"))

    def add_to_list(self, name: str, *features: int) -> None:
        """Append features to a list, creating it if needed; features already in it keep their place."""
        name = text_of("list", name.strip())
        checked = [self._checked(feature) for feature in features]
        with self._file.writing() as connection:
            last = "SELECT coalesce(max(place), -1) FROM lists WHERE weights = ? AND name = ?"
            place = connection.execute(last, (self.weights, name)).fetchone()[0] + 1
            rows = [(self.weights, name, place + i, feature) for i, feature in enumerate(checked)]
            connection.executemany("INSERT OR IGNORE INTO lists VALUES (?, ?, ?, ?)", rows)

    def remove_from_list(self, name: str, *features: int) -> None:
        """Remove features from a list; an empty list disappears."""
        with self._file.writing() as connection:
            connection.executemany("DELETE FROM lists WHERE weights = ? AND name = ? AND feature = ?",
                                   [(self.weights, clean(name), self._checked(feature)) for feature in features])

    # -- editing ------------------------------------------------------------------------------------------------------

    def written(self, feature: int) -> Written:
        """The user's label, note, tags and lists of a feature: the starting point for `change`."""
        return editing.read(self._read, feature)

    def change(self, feature: int, before: Written, after: Written) -> Written:
        """Write only the differences between two states of a feature, in one transaction.

        Tags and lists are added and removed individually, so others' concurrent additions stay. A label or note is
        replaced only if it still equals `before` (or already equals `after`).

        Args:
            feature: the feature.
            before: the state when editing began.
            after: the new state.

        Returns:
            The resulting state.

        Raises:
            Conflict: somebody else changed the same text; nothing is written.
            SaescopeError: a text is too long, the feature doesn't exist, or the file can't be written.
        """
        feature = self._checked(feature)
        with self._file.writing() as connection:

            def run(query: str, *values: object) -> list[tuple[Any, ...]]:
                return connection.execute(query, (self.weights, *values)).fetchall()

            return editing.change(run, feature, before, after)

    # -- looking ------------------------------------------------------------------------------------------------------

    def search(self, text: str) -> list[Match]:
        """Case-insensitive search in labels, notes and tags; labels first, then by feature."""
        wanted = clean(text).casefold()
        places: tuple[tuple[Place, str, str], ...] = (
            ("label", "labels", "text"), ("note", "notes", "text"), ("tag", "tags", "tag"))
        found = [
            Match(feature, where, content)
            for where, table, column in places
            for feature, content in self._read(
                f"SELECT feature, {column} FROM {table} WHERE weights = ? ORDER BY feature, {column}")
            if wanted in content.casefold()
        ]
        return list(dict.fromkeys(found))

    def check(self) -> None:
        """Check that every table can be read.

        Raises:
            SaescopeError: the file is not a label file, is damaged, or can't be read.
        """
        for table in ("labels", "notes", "tags", "lists"):
            self._read(f"SELECT * FROM {table} WHERE weights = ? LIMIT 1")

    def without_file(self, reason: str) -> "Labels":
        """Empty, read-only labels for the same run; writing raises with this reason."""
        other = copy(self)
        other._file = Unreadable(self.path, reason)
        return other

    def stamp(self) -> tuple[int, ...]:
        """A value that changes when the file changes."""
        return self._file.stamp()

    def close(self) -> None:
        """Close the file; the next call reopens it."""
        self._file.close()

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._file.read(query, self.weights, *values)

    def _write(self, query: str, *values: object) -> None:
        with self._file.writing() as connection:
            connection.execute(query, (self.weights, *values))

    def _unpacked(self, feature: int, text: str) -> tuple[Judged, ...]:
        try:
            return tuple(Judged(**one) for one in json.loads(text))
        except (ValueError, TypeError) as error:
            raise SaescopeError(
                f"{self.path}: the scored examples of the label of feature {feature} cannot be read "
                f"({first_line(error)}); label it again."
            ) from None

    def _checked(self, feature: int) -> int:
        if feature < 0 or (self.d_sae is not None and feature >= self.d_sae):
            upto = f"0 to {self.d_sae - 1}" if self.d_sae is not None else "0 and up"
            raise SaescopeError(f"There is no feature {feature}; this run has {upto}.")
        return int(feature)


def _packed(judged: Sequence[Judged]) -> str:
    return json.dumps([asdict(one) for one in judged], separators=(",", ":"))


def _grouped(rows: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for name, feature in rows:
        out.setdefault(name, []).append(feature)
    return out
