"""Quantities in configs: durations with a unit, times, and counts such as `1e6` or `2_000_000`."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, PlainSerializer, PlainValidator
from pydantic_core import CoreSchema, core_schema

from sae.errors import SaescopeError

Unit = Literal["%", "tokens", "steps", "epochs"]
_LARGEST = 2**63 - 1
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_NUMBER = r"([0-9][0-9_]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)"
_DURATION = re.compile(rf"^\s*{_NUMBER}\s*([kMB]?)\s*(%|tokens?|rows?|steps?|epochs?)\s*$")
_TIME = re.compile(rf"^\s*{_NUMBER}\s*(s|sec|seconds?|min|minutes?|h|hours?)\s*$")


@dataclass(frozen=True)
class Duration:
    """A duration in training: `5%` of the budget, `2M tokens` (training rows), `100 steps` or `4 epochs`."""

    value: int | float
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Parse a duration. A bare number is an error whose message shows how to write it.

        Raises:
            ValueError: not a duration.
        """
        if isinstance(text, Duration):
            return text
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f"a duration needs its unit: write '{text:g}%' of the budget or '{text:g} tokens'")
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a duration; write '5%', '2M tokens', '100 steps' or '4 epochs'")
        number, multiple, unit = match.groups()
        names: dict[str, Unit] = {"%": "%", "t": "tokens", "r": "tokens", "s": "steps", "e": "epochs"}
        value = float(number) * _MULTIPLES[multiple]
        if unit == "%" and value > 100:
            raise ValueError(f"{text!r} is more than the whole budget; a share is 0% to 100%")
        if not math.isfinite(value):
            raise ValueError(f"{text!r} is too long")
        return cls(value, names[unit[0]])

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        number = int(self.value) if self.value == int(self.value) else self.value
        return f"{number}%" if self.unit == "%" else f"{number} {self.unit}"

    def rows(self, *, budget_rows: int, batch_rows: int, epoch_rows: int) -> int:
        """This duration in training rows."""
        whole = {"%": budget_rows / 100, "tokens": 1, "steps": batch_rows, "epochs": epoch_rows}[self.unit]
        return round(self.value * whole)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate with `parse`, serialise with `str`."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


@dataclass(frozen=True)
class Time:
    """Wall-clock time: `30 s`, `10 min` or `2 h`."""

    value: int | float
    unit: Literal["s", "min", "h"]

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return float(self.value * {"s": 1, "min": 60, "h": 3600}[self.unit])

    def __str__(self) -> str:
        """The text that is parsed back."""
        return f"{int(self.value) if self.value == int(self.value) else self.value} {self.unit}"


def _interval(text: object) -> Duration | Time:
    """Parse a duration in training or a wall-clock time.

    Raises:
        ValueError: it is neither, or it is not positive.
    """
    match = _TIME.match(text) if isinstance(text, str) else None
    if match is None:
        try:
            return text if isinstance(text, Time) else Duration.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or a time such as '10 min'") from None
    value, unit = float(match[1]), match[2][0]
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a positive time; write for example '10 min'")
    return Time(value, "s" if unit == "s" else "min" if unit == "m" else "h")


Interval = Annotated[Duration | Time, PlainValidator(_interval), PlainSerializer(str)]
"""Interval between events: a duration in training, `5%`, or a wall-clock time, `10 min`."""


def _time(text: object) -> Time:
    """Parse a wall-clock time.

    Raises:
        ValueError: it is not one.
    """
    found = _interval(text)
    if not isinstance(found, Time):
        raise ValueError(f"{text!r} is not a duration; write for example '10 min'")
    return found


Wait = Annotated[Time, PlainValidator(_time), PlainSerializer(str)]
"""A timeout: `30 s`, `10 min`."""


def count(value: object) -> object:
    """Parse a `Count`; values that are not numbers pass through for pydantic to refuse."""
    if isinstance(value, str):
        match = re.match(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([kMB]?)\s*$", value)
        if match is None:
            raise ValueError(f"{value!r} is not a count; write for example 4608, 2_000_000 or 1e6")
        value = float(match[1]) * _MULTIPLES[match[2]]
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"a count is a whole number, not {value}")
        value = int(value)
    if isinstance(value, int) and value > _LARGEST:
        raise ValueError(f"a count is at most 2^63 − 1, not {value:.3g}")
    return value


Count = Annotated[int, BeforeValidator(count)]
"""A whole number that may be written `1e6`, `2_000_000` or `320k`."""

Seed = Annotated[int, Field(ge=0, le=_LARGEST)]
"""Seed of a random number generator: 0 to 2^63 − 1."""


def checked_seed(seed: int) -> int:
    """Check a seed that was given outside a config.

    Raises:
        SaescopeError: it is negative or beyond 2^63 − 1.
    """
    if not 0 <= seed <= _LARGEST:
        raise SaescopeError(f"the seed is {seed}; give one from 0 to {_LARGEST:,}.")
    return seed
