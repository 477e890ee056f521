import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analysis.labels.store import FILE, Judged, Label, Labels, Match
from sae.errors import SaescopeError
from sae.io.files import write_json
from tests.analysis.samples import HOSTILE
from tests.helpers import read_only


def folder(root: Path, weights: str = "a" * 64) -> Path:
    """As much of a run as labels need."""
    (root / "final").mkdir(parents=True, exist_ok=True)
    write_json(root / "final" / "sae.json", {"weights_sha256": weights, "d_sae": 64})
    return root


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(folder(tmp_path / "run"))


def test_looking_makes_no_file(labels: Labels) -> None:
    assert (labels.get(3), labels.all(), labels.note(3), labels.tags(3), labels.lists(), labels.search("a")) == (
        None, [], "", [], {}, [])
    assert labels.names() == {} and labels.stamp() == ()
    assert not labels.path.exists()


def test_what_is_written_is_found_again(labels: Labels) -> None:
    labels.set_label(3, " after seem ")
    labels.set_note(3, "two\nlines")
    labels.add_tag(3, "syntax")
    labels.add_tag(3, "syntax")
    labels.add_to_list("verbs", 9, 3)
    labels.add_to_list("verbs", 3, 1)
    again = Labels(labels.path.parent)
    found = again.get(3)
    assert found is not None and (found.text, found.author, found.score) == ("after seem", "you", None) and found.updated
    assert (again.note(3), again.tags(3), again.lists()) == ("two\nlines", ["syntax"], {"verbs": [9, 3, 1]})
    assert again.all_tags() == {"syntax": [3]}


def test_yours_hides_the_automatic_one_and_gives_it_back(labels: Labels) -> None:
    judged = (Judged(1, 5, 4, ["a", "b"], [0.0, 1.5], active=True, said=False),)
    auto = Label(3, "token b", "auto", 0.75, 0.5, judged, "contrast 1", "2026-01-01T00:00:00+00:00")
    labels.put([auto, Label(4, "token c", "auto")])
    assert labels.get(3) == auto
    assert [(one.text, one.score, one.judged) for one in labels.all()] == [("token b", 0.75, ()), ("token c", None, ())]
    labels.set_label(3, "mine")
    assert [one.text for one in labels.every(3)] == ["mine", "token b"]
    assert [(one.feature, one.text) for one in labels.all()] == [(3, "mine"), (4, "token c")]
    assert labels.names() == {3: "mine", 4: "token c"}
    labels.set_label(3, "  ")
    assert labels.get(3) == auto


def test_taking_away(labels: Labels) -> None:
    labels.add_tag(1, "a")
    labels.add_to_list("l", 1, 2)
    labels.set_note(1, "x")
    labels.remove_tag(1, "a")
    labels.remove_from_list("l", 1)
    labels.set_note(1, "")
    assert (labels.tags(1), labels.lists(), labels.note(1)) == ([], {"l": [2]}, "")
    labels.remove_from_list("l", 2)
    assert labels.lists() == {}


def test_search_knows_no_case(labels: Labels) -> None:
    labels.set_label(1, "Über 100% of _these")
    labels.put([Label(2, "über", "auto")])
    labels.set_note(2, "see ÜBER")
    labels.add_tag(5, "über")
    assert labels.search("über") == [
        Match(1, "label", "Über 100% of _these"), Match(2, "label", "über"), Match(2, "note", "see ÜBER"),
        Match(5, "tag", "über"),
    ]
    assert [m.feature for m in labels.search("0% of _t")] == [1] and labels.search("_h") == []


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_kept_as_it_is(labels: Labels, text: str) -> None:
    kept = text.replace("\udcff", "\ufffd")
    labels.set_note(1, f"a{text}"[:100_000])
    assert labels.note(1) == f"a{kept}"[:100_000]
    if len(text) <= 90:
        labels.set_label(1, f"a{text}b")
        labels.add_tag(1, f"a{text}b")
        labels.add_to_list(f"a{text}b", 1)
        again = Labels(labels.path.parent)
        assert again.names() == {1: f"a{kept}b"}
        assert again.tags(1) == [f"a{kept}b"] and again.lists() == {f"a{kept}b": [1]}
        assert {match.where for match in again.search(text)} == {"label", "note", "tag"}
        labels.remove_tag(1, f"a{text}b")
        labels.remove_from_list(f"a{text}b", 1)
        assert again.tags(1) == [] and again.lists() == {}


def test_quoting_cannot_reach_the_database(labels: Labels) -> None:
    labels.set_label(1, "'; DROP TABLE labels; --")
    labels.add_tag(1, "x'); DELETE FROM tags; --")
    assert labels.names() == {1: "'; DROP TABLE labels; --"} and labels.tags(1) == ["x'); DELETE FROM tags; --"]


def test_too_much_too_little_and_too_far(labels: Labels) -> None:
    with pytest.raises(SaescopeError, match=r"1,001 characters.*1,000"):
        labels.set_label(1, "x" * 1001)
    with pytest.raises(SaescopeError, match="tag is empty"):
        labels.add_tag(1, " ")
    with pytest.raises(SaescopeError, match="no feature 64; this run has 0 to 63"):
        labels.set_label(64, "x")
    with pytest.raises(SaescopeError, match="no feature -1"):
        labels.add_to_list("l", 0, -1)
    assert labels.lists() == {}


def test_all_labels_or_none(labels: Labels) -> None:
    with pytest.raises(SaescopeError):
        labels.put([Label(1, "a", "auto"), Label(2, "", "auto")])
    assert labels.all() == []


def test_new_weights_do_not_inherit(labels: Labels) -> None:
    labels.set_label(1, "old")
    new = Labels(folder(labels.path.parent, "b" * 64))
    assert new.get(1) is None
    new.set_label(1, "new")
    assert labels.names() == {1: "old"} and new.names() == {1: "new"}


def test_a_damaged_file_is_refused_and_left(labels: Labels) -> None:
    labels.set_label(1, "precious")
    labels.close()
    whole = labels.path.read_bytes()
    damaged = whole[:100] + b"\xff" * 3000 + whole[3100:]
    for content in (damaged, b"not a database, just text " * 100):
        labels.path.write_bytes(content)
        for act in (lambda: labels.get(1), lambda: labels.set_label(1, "x")):
            with pytest.raises(SaescopeError, match=r"labels\.sqlite cannot be used as a database .* nothing in it was"):
                act()
        labels.close()
        assert labels.path.read_bytes() == content
    labels.path.write_bytes(whole)
    assert labels.names() == {1: "precious"}


def test_a_file_that_cannot_be_read_is_stood_in_for(labels: Labels) -> None:
    labels.path.write_bytes(b"not a database, just text " * 100)
    with pytest.raises(SaescopeError, match="cannot be used as a database"):
        labels.check()
    none = labels.without_file("for this reason")
    assert (none.names(), none.lists(), none.search("a"), none.get(1)) == ({}, {}, [], None)
    with pytest.raises(SaescopeError, match="for this reason"):
        none.set_label(1, "x")


def test_judged_examples_that_are_garbage(labels: Labels) -> None:
    labels.set_label(1, "precious")
    labels._write("UPDATE labels SET judged = '[{\"a\": 1}]' WHERE weights = ?")
    labels.check()
    assert labels.names() == {1: "precious"}
    with pytest.raises(SaescopeError, match="label of feature 1 cannot be read"):
        labels.get(1)


def test_a_file_that_was_only_begun_is_empty(labels: Labels) -> None:
    labels.path.touch()
    assert labels.all() == []
    labels.set_label(1, "a")
    assert labels.names() == {1: "a"}


def test_other_databases_and_later_formats_are_refused(labels: Labels) -> None:
    with sqlite3.connect(labels.path) as other:
        other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(SaescopeError, match="another application"):
        labels.set_label(1, "a")
    labels.path.unlink()
    labels.set_label(1, "a")
    labels.close()
    with sqlite3.connect(labels.path) as later:
        later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(SaescopeError, match="format version 2, this code reads up to 1"):
        labels.get(1)


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match=r"sae\.json"):
        Labels(tmp_path)
    assert Labels(tmp_path, weights="c").all() == []


def test_many_threads_lose_nothing(labels: Labels) -> None:
    other = Labels(labels.path.parent)
    problems: list[BaseException] = []

    def write(who: int) -> None:
        try:
            for i in range(8):
                mine = labels if i % 2 else other
                mine.set_label(8 * who + i, f"{who} {i}")
                mine.add_to_list("all", 8 * who + i)
                mine.names()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert labels.names() == {8 * who + i: f"{who} {i}" for who in range(8) for i in range(8)}
    assert sorted(other.lists()["all"]) == list(range(64))


def test_a_killed_writer_leaves_what_was_there(labels: Labels) -> None:
    labels.set_label(1, "a")
    before = labels.stamp()
    code = (
        "import os, sys; from analysis.labels.store import Labels\n"
        "labels = Labels(sys.argv[1]); labels.set_label(2, 'b')\n"
        "with labels._file.writing() as c:\n"
        "    c.execute('DELETE FROM labels'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(labels.path.parent)], check=False).returncode == -9
    assert labels.names() == {1: "a", 2: "b"} and labels.stamp() != before
    assert Labels(labels.path.parent).names() == {1: "a", 2: "b"} and labels.path.name == FILE


def test_a_file_that_another_program_holds(labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.labels.file._WAIT_S", 0.05)
    labels.set_label(1, "a")
    labels.close()
    other = sqlite3.connect(labels.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert labels.names() == {1: "a"}
        with pytest.raises(SaescopeError, match="locked by another program"):
            labels.set_label(1, "b")
    finally:
        other.close()
    labels.set_label(1, "b")


def test_labels_in_a_read_only_folder_are_read_and_not_changed(labels: Labels) -> None:
    labels.set_label(3, "mine")
    labels.close()
    with read_only(labels.path.parent):
        again = Labels(labels.path.parent)
        assert again.names() == {3: "mine"} and again.get(3) == labels.get(3) and again.search("mine")
        assert not again.writable and not list(labels.path.parent.glob("*-wal"))
        for change in (lambda: again.set_label(3, "other"), lambda: again.add_to_list("list", 3), lambda: again.put([])):
            with pytest.raises(SaescopeError, match="writable"):
                change()
        assert Labels(folder(labels.path.parents[1] / "none")).writable
    assert again.names() == {3: "mine"} and again.writable
    again.set_label(3, "other")
    assert labels.names() == {3: "other"}


def test_what_was_not_yet_in_the_file_is_read_from_a_read_only_folder_too(labels: Labels) -> None:
    """Of a run that was copied while somebody labelled."""
    labels.set_label(3, "mine")
    assert labels.path.with_name(f"{FILE}-wal").stat().st_size
    copied = folder(labels.path.parents[1] / "copy")
    for file in labels.path.parent.glob(f"{FILE}*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, copied)
    with read_only(copied):
        assert Labels(copied).names() == {3: "mine"}


def test_a_read_only_folder_that_somebody_else_writes_is_read_again(labels: Labels) -> None:
    labels.set_label(3, "mine")
    labels.close()
    shown = folder(labels.path.parents[1] / "shown")
    subprocess.run(["mount", "--bind", str(labels.path.parent), str(shown)], check=False, capture_output=True)
    if not (shown / FILE).exists():
        pytest.skip("no folder can be mounted twice here")
    try:
        with read_only(shown):
            theirs = Labels(shown)
            assert theirs.names() == {3: "mine"}
            labels.set_label(4, "more")
            assert theirs.names() == {3: "mine", 4: "more"}
    finally:
        subprocess.run(["umount", "--lazy", str(shown)], check=True)


def test_a_read_only_folder_without_labels_or_with_something_else(labels: Labels) -> None:
    with read_only(labels.path.parent):
        assert labels.names() == {} and not labels.writable
    connection = sqlite3.connect(labels.path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with read_only(labels.path.parent), pytest.raises(SaescopeError, match=f"{labels.path} is a database of another"):
        labels.names()
