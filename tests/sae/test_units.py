import pytest
from pydantic import BaseModel, ValidationError

from sae.units import Count, Duration, Interval, Time


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("5%", 5, "%"), ("2M tokens", 2e6, "tokens"), ("300k rows", 3e5, "tokens"), ("1_000 steps", 1000, "steps"),
     ("4 epochs", 4, "epochs"), ("1e6 tokens", 1e6, "tokens"), ("0.5 epochs", 0.5, "epochs"), ("1 epoch", 1, "epochs")],
)
def test_durations_are_read_with_their_unit(text: str, value: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(value, unit)  # type: ignore[arg-type]
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


@pytest.mark.parametrize("bare", [5, 1000, 0.05])
def test_a_bare_number_is_refused_with_both_spellings(bare: float) -> None:
    with pytest.raises(ValueError, match=rf"'{bare:g}%' of the budget or '{bare:g} tokens'"):
        Duration.parse(bare)


@pytest.mark.parametrize("text", ["five %", "5", "5 hours", "-3 steps", "", None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


def test_durations_in_rows() -> None:
    sizes = {"budget_rows": 10_000, "batch_rows": 100, "epoch_rows": 2_500}
    rows = [Duration.parse(d).rows(**sizes) for d in ("5%", "300 tokens", "7 steps", "2 epochs")]
    assert rows == [500, 300, 700, 5000]


class Repeated(BaseModel):
    every: Interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30 s", 30), ("1.5 seconds", 1.5), ("10 min", 600), ("1 minute", 60), ("10min", 600), ("2 h", 7200),
     ("0.5 hours", 1800)],
)
def test_a_time_is_read_with_its_unit_and_survives_its_spelling(text: str, seconds: float) -> None:
    repeated = Repeated.model_validate({"every": text})
    assert isinstance(repeated.every, Time) and repeated.every.seconds == seconds and Time(1, "min").seconds == 60
    assert Repeated.model_validate(repeated.model_dump(mode="json")) == repeated
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["5%", "2M tokens", "100 steps", "4 epochs"])
def test_an_interval_may_be_a_stretch_of_training(text: str) -> None:
    repeated = Repeated.model_validate({"every": text})
    assert repeated.every == Duration.parse(text)
    assert Repeated.model_validate(repeated.model_dump(mode="json")) == repeated


@pytest.mark.parametrize("text", ["0 s", "-1 min", "1e400 h", "10", 10, "10 days", "min", None])
def test_what_is_no_interval_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="10 min"):
        Repeated.model_validate({"every": text})


class Counted(BaseModel):
    n: Count


@pytest.mark.parametrize(
    ("text", "n"), [("1e6", 10**6), (1e6, 10**6), ("2_000_000", 2 * 10**6), ("320k", 320_000), (7, 7), ("1.5M", 1_500_000)]
)
def test_counts(text: object, n: int) -> None:
    assert Counted.model_validate({"n": text}).n == n


@pytest.mark.parametrize("text", [1.5, "many", "1.0005k"])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        Counted.model_validate({"n": text})
