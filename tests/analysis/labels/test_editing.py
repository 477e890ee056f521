"""Edits of one feature from several places: only what was changed is written, and nobody's text is lost unseen."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.labels.editing import Conflict, Written
from analysis.labels.store import Label, Labels
from sae.errors import SaescopeError
from tests.analysis.labels.test_store import folder


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(folder(tmp_path / "run"))


def test_only_what_differs_is_written(labels: Labels) -> None:
    labels.put([Label(3, "automatic", "auto")])
    assert labels.written(3) == Written()
    read = labels.written(3)
    # meanwhile elsewhere
    labels.set_note(3, "their note")
    labels.add_tag(3, "theirs")
    labels.add_to_list("their list", 3, 7)
    now = labels.change(3, read, Written(" mine ", "", ("b", "a"), ("my list",)))
    assert now == labels.written(3) == Written("mine", "their note", ("a", "b", "theirs"), ("my list", "their list"))
    assert [one.text for one in labels.every(3)] == ["mine", "automatic"]
    assert labels.change(3, now, Written()) == Written()
    assert labels.lists() == {"their list": [7]} and [one.text for one in labels.every(3)] == ["automatic"]


def test_a_text_that_changed_meanwhile_is_not_overwritten(labels: Labels) -> None:
    read = labels.written(3)
    labels.change(3, read, Written("theirs", "a note"))
    with pytest.raises(Conflict) as caught:
        labels.change(3, read, Written("mine", "a note", ("tag",)))
    assert (caught.value.fields, caught.value.theirs) == (("label",), Written("theirs", "a note"))
    assert labels.written(3) == caught.value.theirs  # not even the tag
    # who has seen theirs may replace it
    assert labels.change(3, caught.value.theirs, Written("mine", "a note")).label == "mine"


def test_the_same_change_twice_is_no_conflict(labels: Labels) -> None:
    before, after = labels.written(3), Written("mine", "note", ("a",), ("l",))
    assert labels.change(3, before, after) == labels.change(3, before, after) == after


def test_places_in_a_list_follow_each_other(labels: Labels) -> None:
    for feature in (9, 3, 5):
        labels.change(feature, Written(), Written(lists=("l",)))
    assert labels.lists() == {"l": [9, 3, 5]}


@pytest.mark.parametrize("after", [Written("x" * 1001), Written(tags=("x" * 101,)), Written(lists=("x" * 201,))])
def test_what_cannot_be_kept_writes_nothing(labels: Labels, after: Written) -> None:
    with pytest.raises(SaescopeError):
        labels.change(3, Written(), replace(after, note="lost?"))
    assert labels.written(3) == Written()
    with pytest.raises(SaescopeError):
        labels.change(64, Written(), Written("a"))


@pytest.mark.parametrize("seed", range(3))
def test_two_editors_for_200_random_actions_lose_nothing(labels: Labels, seed: int) -> None:
    """Each reads, edits and saves as it likes: what was saved last is there, or the other has been told of it."""
    rng = random.Random(seed)
    editors = [Labels(labels.path.parent) for _ in range(2)]
    read = [{feature: Written() for feature in range(3)} for _ in editors]
    truth = {feature: Written() for feature in range(3)}
    n_conflicts = 0
    for n in range(200):
        who, feature = rng.randrange(2), rng.randrange(3)
        mine = read[who][feature]
        if rng.random() < 0.3:
            read[who][feature] = editors[who].written(feature)
            assert read[who][feature] == truth[feature]
            continue
        field = rng.choice(["label", "note", "tags", "lists"])
        changed = f"{n}" if field in ("label", "note") else tuple(rng.sample("abcd", rng.randrange(3)))
        after = replace(mine, **{field: changed})
        stale = field in ("label", "note") and getattr(truth[feature], field) != getattr(mine, field)
        try:
            read[who][feature] = editors[who].change(feature, mine, after)
        except Conflict as told:
            n_conflicts += 1
            assert stale and told.theirs == truth[feature]
            read[who][feature] = told.theirs
            continue
        assert not stale
        if field in ("label", "note"):
            truth[feature] = replace(truth[feature], **{field: changed})
        else:
            had, has = {*getattr(mine, field)}, {*changed}
            merged = ({*getattr(truth[feature], field)} - (had - has)) | (has - had)
            truth[feature] = replace(truth[feature], **{field: tuple(sorted(merged))})
        assert labels.written(feature) == truth[feature]
    assert n_conflicts > 5
