"""Edits as the browser sends them: kept once, answered each time, and never over somebody else's text."""

from dataclasses import asdict
from pathlib import Path

from analysis.labels.editing import Written
from analysis.labels.store import Labels
from dashboard.components.reader import answers
from tests.analysis.labels.test_store import folder


def save(name: str, before: Written, after: Written, feature: int = 3) -> dict:
    return {"id": name, "feature": feature, "before": asdict(before), "after": asdict(after)}


def test_an_edit_that_is_sent_twice_is_done_once(tmp_path: Path) -> None:
    labels = Labels(folder(tmp_path / "run"))
    first = save("a", Written(), Written("mine", "", ("t",), ("starred",)))
    told = answers(labels, [first])
    assert told == [{"id": "a", "feature": 3, "written": asdict(Written("mine", "", ("t",), ("starred",)))}]
    labels.set_label(3, "theirs")
    assert answers(labels, [first], told) == told and labels.written(3).label == "theirs"
    assert answers(labels, [], told) == []


def test_a_conflict_and_an_error_are_answers(tmp_path: Path) -> None:
    labels = Labels(folder(tmp_path / "run"))
    labels.set_label(3, "theirs")
    clash, long = save("a", Written(), Written("mine")), save("b", Written(), Written("x" * 2000), 4)
    fine = save("c", Written(), Written("y"), 5)
    told = {answer["id"]: answer for answer in answers(labels, [clash, long, fine])}
    assert told["a"] == {"id": "a", "feature": 3, "fields": ["label"], "theirs": asdict(Written("theirs"))}
    assert "2,000 characters" in told["b"]["error"] and told["c"]["written"]["label"] == "y"
    assert labels.names() == {3: "theirs", 5: "y"}
