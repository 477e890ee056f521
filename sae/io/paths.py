"""Parsing of paths from configs, the command line and Python; and the user's cache folder."""

import os
from pathlib import Path

from sae.errors import SaescopeError


def user_path(text: str | Path) -> Path:
    """Expand `~` and `~NAME` in a path.

    Raises:
        SaescopeError: no such user, or the path contains a zero byte.
    """
    if "\0" in str(text):
        raise SaescopeError(f"{str(text)!r} contains a zero byte, so it is not a path.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SaescopeError(f"{text}: this user has no home folder; write the path in full.") from None


def cache_home() -> Path:
    """Saescope's cache folder: `$SAESCOPE_HOME`, else `~/.cache/saescope`."""
    return Path(os.environ.get("SAESCOPE_HOME") or Path.home() / ".cache" / "saescope")
