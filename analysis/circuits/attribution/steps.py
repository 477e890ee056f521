"""Work that is done step by step, so that whoever waits for it can show how far it is, do something else, or stop."""

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


def at_once(steps: Generator[Step, None, Result], progress: Callable[[Step], None] | None = None) -> Result:
    """Do all steps, and give what they lead to.

    Args:
        steps: a generator; what it returns is the result.
        progress: told of what it yields.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if progress is not None:
            progress(step)
