"""Escape user text for Markdown, form fields and shell commands."""

import shlex
from pathlib import Path

from analysis.render import text


def shell(path: Path) -> str:
    """Shell-quote a path, relative to the current folder if it is inside it."""
    whole = path.absolute()
    return shlex.quote(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))


def visible(name: str) -> str:
    """A name for a form field, with bidi controls and invisible characters written out."""
    return text.plain(name, limit=None)


def plain(said: str) -> str:
    """Escape Markdown, so that the text shows verbatim."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|~:$&" else c for c in said)
