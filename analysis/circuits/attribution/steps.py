"""Run step-by-step work (a generator), so that a caller can show progress, do something else, or stop."""

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


def at_once(steps: Generator[Step, None, Result], progress: Callable[[Step], None] | None = None) -> Result:
    """Run a generator to the end and return its result.

    Args:
        steps: the generator; its return value is the result.
        progress: called with each yielded value.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if progress is not None:
            progress(step)
