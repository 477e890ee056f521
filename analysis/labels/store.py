"""runs/NAME/labels.sqlite: labels, notes, tags and lists, the one artefact that people write.

Rows are keyed by the weights' hash and the feature, so that re-indexing touches nothing and a run trained anew under an old
name does not inherit labels of other weights, which stay in the file. Plain SQLite in WAL mode: tables `labels`, `notes`,
`tags`, `lists`, readable with any SQLite. The file comes into being with the first thing written. Texts are data: nothing
is interpreted, and a lone half of a surrogate pair, which no file can hold as text, is kept as U+FFFD.
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
"""What the method of a label begins with that a language model wrote; the model and where it runs follow."""

Author = Literal["you", "auto"]
Place = Literal["label", "note", "tag"]


@dataclass(frozen=True)
class Judged:
    """One held-out example by which a label was scored."""

    seq: int
    position: int
    start: int
    pieces: list[str]
    values: list[float]
    """The feature's value at each token, for showing; the judge did not see them."""
    active: bool
    """Whether the feature is active at `position`."""
    said: bool
    """Whether the label says so."""

    @property
    def peak(self) -> int:
        """The judged token's place in `pieces`."""
        return self.position - self.start


@dataclass(frozen=True)
class Label:
    """What a feature is taken to mean."""

    feature: int
    text: str
    author: Author = "you"
    score: float | None = None
    """Balanced accuracy of detection on held-out examples, 0 to 1; chance is 0.5."""
    baseline: float | None = None
    """The same examples judged by the label of another feature."""
    judged: Sequence[Judged] = ()
    method: str = ""
    """How an automatic label was made."""
    updated: str = ""
    """When, UTC, ISO 8601."""

    @property
    def model(self) -> str:
        """The language model that wrote it and where it runs; "" for labels of another origin."""
        return self.method.removeprefix(BY_MODEL).rpartition(", ")[0] if self.method.startswith(BY_MODEL) else ""


@dataclass(frozen=True)
class Match:
    """Where a search found its text."""

    feature: int
    where: Place
    text: str


class Labels:
    """The labels of one run's features. May be used from several threads, and by several processes at once."""

    def __init__(self, run: str | Path, *, weights: str | None = None) -> None:
        """Open nothing yet.

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
                raise SaescopeError(f"{run}/final/sae.json names no weights; restore it or train again.")
        self.weights = weights
        self._file = Database(self.path)

    @property
    def writable(self) -> bool:
        """Whether labels can be kept here; those that are there can be read in any case."""
        return self._file.writable

    # -- labels -------------------------------------------------------------------------------------------------------

    def get(self, feature: int) -> Label | None:
        """The label of a feature: yours, else the automatic one."""
        found = self.every(feature)
        return found[0] if found else None

    def every(self, feature: int) -> list[Label]:
        """All labels of a feature, yours first."""
        return self._labels("AND feature = ?", feature)

    def all(self) -> list[Label]:
        """One label for each feature that has any, by feature; yours hide automatic ones.

        The judged examples, which are most of the file, are left out: `get` has them.
        """
        best: dict[int, Label] = {}
        for label in self._labels("", judged="'[]'"):
            best.setdefault(label.feature, label)
        return [best[feature] for feature in sorted(best)]

    def automatic(self) -> list[Label]:
        """All automatic labels, by feature, hidden ones too; without the judged examples."""
        return self._labels("AND author = 'auto'", judged="'[]'")

    def names(self) -> dict[int, str]:
        """Feature → text, for all that have one."""
        rows = self._read("SELECT feature, text FROM labels WHERE weights = ? ORDER BY author = 'you'")
        return dict(rows)

    def set_label(self, feature: int, text: str) -> None:
        """Write your label; an empty text removes it, and an automatic one shows again."""
        if text.strip():
            self.put([Label(feature, text.strip())])
        else:
            self._write("DELETE FROM labels WHERE weights = ? AND feature = ? AND author = 'you'", self._checked(feature))

    def put(self, labels: Iterable[Label]) -> None:
        """Write labels, each in place of what its author had said of that feature; all of them or none."""
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
        """The note of a feature, or ""."""
        rows = self._read("SELECT text FROM notes WHERE weights = ? AND feature = ?", feature)
        return rows[0][0] if rows else ""

    def set_note(self, feature: int, text: str) -> None:
        """Write a note; an empty one removes it."""
        if text.strip():
            self._write("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", self._checked(feature), text_of("note", text),
                        now())
        else:
            self._write("DELETE FROM notes WHERE weights = ? AND feature = ?", self._checked(feature))

    def tags(self, feature: int) -> list[str]:
        """The tags of a feature, by name."""
        query = "SELECT tag FROM tags WHERE weights = ? AND feature = ? ORDER BY tag"
        return [tag for (tag,) in self._read(query, feature)]

    def all_tags(self) -> dict[str, list[int]]:
        """Every tag and the features that have it."""
        return _grouped(self._read("SELECT tag, feature FROM tags WHERE weights = ? ORDER BY tag, feature"))

    def add_tag(self, feature: int, tag: str) -> None:
        """Tag a feature; it may have the tag already."""
        self._write("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", self._checked(feature), text_of("tag", tag.strip()))

    def remove_tag(self, feature: int, tag: str) -> None:
        """Take a tag off."""
        self._write("DELETE FROM tags WHERE weights = ? AND feature = ? AND tag = ?", self._checked(feature), clean(tag))

    # -- lists --------------------------------------------------------------------------------------------------------

    def lists(self) -> dict[str, list[int]]:
        """Every list and its features, in the order in which they were added."""
        return _grouped(self._read("SELECT name, feature FROM lists WHERE weights = ? ORDER BY name, place, feature"))

    def add_to_list(self, name: str, *features: int) -> None:
        """Put features at the end of a list, made if there is none; those in it stay where they are."""
        name = text_of("list", name.strip())
        checked = [self._checked(feature) for feature in features]
        with self._file.writing() as connection:
            last = "SELECT coalesce(max(place), -1) FROM lists WHERE weights = ? AND name = ?"
            place = connection.execute(last, (self.weights, name)).fetchone()[0] + 1
            rows = [(self.weights, name, place + i, feature) for i, feature in enumerate(checked)]
            connection.executemany("INSERT OR IGNORE INTO lists VALUES (?, ?, ?, ?)", rows)

    def remove_from_list(self, name: str, *features: int) -> None:
        """Take features out of a list; a list without features is gone."""
        with self._file.writing() as connection:
            connection.executemany("DELETE FROM lists WHERE weights = ? AND name = ? AND feature = ?",
                                   [(self.weights, clean(name), self._checked(feature)) for feature in features])

    # -- editing ------------------------------------------------------------------------------------------------------

    def written(self, feature: int) -> Written:
        """Your label, note, tags and lists of a feature: what `change` starts from."""
        return editing.read(self._read, feature)

    def change(self, feature: int, before: Written, after: Written) -> Written:
        """Write what differs between two states of a feature, and nothing else, in one transaction.

        Tags and lists are added and taken away one by one, so that those which others have added meanwhile stay. A label
        or note is replaced only if it is still as it was in `before` (or says already what it is to say).

        Args:
            feature: whose.
            before: as it was read before it was edited.
            after: as it is to be.

        Returns:
            What is there now.

        Raises:
            Conflict: somebody else has changed a text that is to be changed; nothing is written.
            SaescopeError: too long a text, no such feature, or the file cannot be written.
        """
        feature = self._checked(feature)
        with self._file.writing() as connection:

            def run(query: str, *values: object) -> list[tuple[Any, ...]]:
                return connection.execute(query, (self.weights, *values)).fetchall()

            return editing.change(run, feature, before, after)

    # -- looking ------------------------------------------------------------------------------------------------------

    def search(self, text: str) -> list[Match]:
        """Where labels, notes and tags hold a text, whatever its case; labels first, then by feature."""
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
        """Look into every table.

        Raises:
            SaescopeError: the file is none of labels, is damaged, or cannot be read.
        """
        for table in ("labels", "notes", "tags", "lists"):
            self._read(f"SELECT * FROM {table} WHERE weights = ? LIMIT 1")

    def without_file(self, reason: str) -> "Labels":
        """Labels of the same run that hold nothing, and refuse, for this reason, to be written."""
        other = copy(self)
        other._file = Unreadable(self.path, reason)
        return other

    def stamp(self) -> tuple[int, ...]:
        """A value that changes whenever the file has."""
        return self._file.stamp()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
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
                f"{self.path}: the examples that judged the label of feature {feature} cannot be read "
                f"({first_line(error)}); label it anew."
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
