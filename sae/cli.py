"""The `sae` command. Subcommands are entry points, found by name and imported only when called.

Each package registers its own in the group `saescope.commands`, so this package needs no import of the ones above it. A
subcommand's line in the help is the first line of its function's docstring, read from the source without importing it.
"""

import argparse
import ast
import contextlib
import errno
import importlib.metadata
import importlib.util
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from sae.errors import SaescopeError

GROUP = "saescope.commands"
_OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""OS errors shown without a traceback: they are not bugs."""
_CLOSED_PIPE = 141
"""Exit status that a shell reports for a program killed by SIGPIPE: 128 + 13."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the paragraphs of descriptions and epilogs; lines with columns or indentation stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for plain, lines in groupby(text.splitlines(), lambda line: bool(line) and "  " not in line):
            group = list(lines)
            filled += [textwrap.fill(" ".join(group), width)] if plain else group
        return textwrap.indent("\n".join(filled), indent)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status.

    0 on success, 2 with one sentence on stderr for errors the user can fix, 130 if interrupted, 141 (silently) if the
    output pipe was closed. Characters that the terminal's encoding lacks are replaced.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            return _run(argv)
        finally:
            # flush here: a closed pipe could not be caught at interpreter exit
            sys.stdout.flush()
    except BrokenPipeError:
        # discard the output that is still buffered
        with contextlib.suppress(io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(commands))
        return 0
    if argv[0] == "--version":
        print(importlib.metadata.version("saescope"))
        return 0
    if argv[0] not in commands:
        print(f"sae: unknown command {argv[0]!r}; the commands are {', '.join(sorted(commands))}.", file=sys.stderr)
        return 2
    try:
        return int(commands[argv[0]].load()(argv[1:]) or 0)
    except SaescopeError as error:
        print(f"sae {argv[0]}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        place = error.filename or "a file"
        print(f"sae {argv[0]}: {place}: {error.strerror}; free some space or choose another folder.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sae {argv[0]}: interrupted.", file=sys.stderr)
        return 130


def _help(commands: dict[str, importlib.metadata.EntryPoint]) -> str:
    lines = [f"  {name:<10} {_summary(entry)}" for name, entry in sorted(commands.items())]
    return "\n".join([
        "usage: sae COMMAND ...", "", "Sparse autoencoders: train them, browse them, measure them, wire them up.", "",
        *lines, "", "See sae COMMAND --help for its options.",
    ])


def _summary(entry: importlib.metadata.EntryPoint) -> str:
    """First line of the command's docstring."""
    spec = importlib.util.find_spec(entry.module)
    assert spec is not None and spec.origin is not None, f"{entry.module} is not installed"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(functions[entry.attr]) or "").partition("\n")[0]


if __name__ == "__main__":  # torchrun -m sae.cli train ...
    sys.exit(main())
