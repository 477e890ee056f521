"""The one error class for what a user can cause.

The command prints its text without a traceback and leaves with exit code 2; notebooks see an ordinary exception.
Broken invariants are asserts instead, and keep their traceback.
"""


class SaescopeError(Exception):
    """One clear sentence: what was found, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, without its full stop; the error's class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
