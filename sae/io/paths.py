"""The one way in which a path from a user is read, from a config, the command line or Python; and the user's cache."""

import os
from pathlib import Path

from sae.errors import SaescopeError


def user_path(text: str | Path) -> Path:
    """The path, `~` being the home folder (and `~NAME` that of another user).

    Raises:
        SaescopeError: no such user, or a zero byte, which no path holds.
    """
    if "\0" in str(text):
        raise SaescopeError(f"{str(text)!r} holds a zero byte, so it is no path.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SaescopeError(f"{text}: there is no home folder of that user; write the path in full.") from None


def cache_home() -> Path:
    """The user cache of Saescope: `$SAESCOPE_HOME`, else `~/.cache/saescope`."""
    return Path(os.environ.get("SAESCOPE_HOME") or Path.home() / ".cache" / "saescope")
