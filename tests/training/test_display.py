"""What a display says where there is no terminal: steps with their place in the plan, time left, slow rates."""

import pytest

from training import display as module
from training.display import Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_steps_say_their_place_in_the_plan(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.step("loading")
    display.plan("loading", "training", "indexing")
    display.step("loading")
    for title in ("training", "indexing: rows", "indexing: features", "reading"):
        with display.task(title, 10) as task:
            clock[0] += 2
            task.advance(10)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": 10")[0] for line in said] == [
        "1 of 3: loading", "2 of 3: training", "3 of 3: indexing: rows", "3 of 3: indexing: features", "reading",
    ]


def test_time_left_and_the_end_are_said_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Display().task("training", 400, "rows") as task:
        for _ in range(4):
            clock[0] += 40
            task.advance(100)
    first, *rest, last = capsys.readouterr().err.splitlines()
    assert "100 rows" in first and "2.5 rows/s" in first and "2 min left" in first
    assert "400 rows in 160" in last and "left" not in last
    assert len(rest) == 2 and "40 s left" in rest[-1]


def test_work_done_before_counts_for_what_is_left_and_not_for_the_rate(clock: list[float]) -> None:
    with Display(quiet=True).task("caching", 1000) as task:
        task.skip(500)
        clock[0] += 10
        task.advance(100)
        assert task.per_second() == 10 and task.left() == ", 40 s left"
