"""The one error class for mistakes a user can make.

The command prints its message without a traceback and exits with status 2; in notebooks it is an ordinary exception.
Broken invariants are asserts instead, and keep their traceback.
"""


class SaescopeError(Exception):
    """An error the user can fix. The message says what was found, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """First line of another library's error, without its full stop; the class name if the message is empty.

    A line that ends with a colon is joined with the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:n]).rstrip(".") or type(error).__name__
