"""Text of users made safe to show: in Markdown, in fields, and in commands to copy."""

import shlex
from pathlib import Path

from analysis.render import text


def shell(path: Path) -> str:
    """A path as a shell takes it, relative to the current folder where it lies below it."""
    whole = path.absolute()
    return shlex.quote(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))


def visible(name: str) -> str:
    """A name as a field shows it: marks that would turn it round, or that draw nothing, are spelt out."""
    return text.plain(name, limit=None)


def plain(said: str) -> str:
    """Text that Markdown shows as it stands."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|~:$&" else c for c in said)
