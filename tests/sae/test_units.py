import pytest
from pydantic import BaseModel, ValidationError

from sae.units import Count, Duration


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
