"""The one error class for what a user can cause.

The command prints its text without a traceback and leaves with exit code 2; notebooks see an ordinary exception.
Broken invariants are asserts instead, and keep their traceback.
"""


class SaescopeError(Exception):
    """One clear sentence: what was found, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, without its full stop; the error's class where it says nothing.

    A line that ends with a colon only announces the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:n]).rstrip(".") or type(error).__name__
