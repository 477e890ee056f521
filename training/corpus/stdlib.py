"""A corpus available on every machine: sources and docstrings of the running interpreter's standard library.

Modules are cut into pieces, which are shuffled by a hash of label, text and seed, so that even a small token budget gets a
broad sample. Code and English are mixed at random; all pieces of a module share a group.
"""

import ast
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

# tests and data tables are not useful text; installed packages and build settings differ between machines
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages", "__pycache__", "__phello__",
}
_LEFT_OUT_STEMS = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
# a dictionary of manual pages as escaped strings
_PROSE_ONLY = "pydoc_data/topics.py"
_PIECE_CHARS = 6_000
_MIN_CHARS = 1_000


class Piece(NamedTuple):
    """A piece of a module's source or of its docstrings."""

    text: str
    label: str
    module: str


def stdlib_pieces(seed: int) -> Iterator[Piece]:
    """All pieces of the standard library, in the order given by `seed`."""
    # sort by a hash instead of shuffling: adding or removing a module doesn't change the order of the others
    yield from sorted(_all_pieces(), key=lambda piece: _order(piece, seed))


def _order(piece: Piece, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{piece.label}:{piece.text}".encode()).digest()


@lru_cache(maxsize=1)
def stdlib_identity() -> dict[str, Any]:
    """The Python version, the number of modules and a hash of their names and contents."""
    digest = hashlib.sha256()
    files = _modules()
    for name, path in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return {"python": platform.python_version(), "n_files": len(files), "sha256": digest.hexdigest()}


def _modules() -> list[tuple[str, Path]]:
    """The modules used, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        # don't descend into excluded folders: site-packages can be large
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_STEMS)]
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_LEFT_OUT_STEMS)]
    return sorted((path.relative_to(root).as_posix(), path) for path in found)


def _all_pieces() -> Iterator[Piece]:
    for name, path in _modules():
        try:
            source = path.read_text(encoding="utf-8")
            tree = _parse(source)
        except (UnicodeDecodeError, SyntaxError):  # some modules are templates or samples in other encodings
            continue
        if name != _PROSE_ONLY:
            for line, text in cut(source, _PIECE_CHARS):
                yield Piece(text, f"{name}:{line}", name)
        for _, text in cut(_prose(tree, all_strings=name == _PROSE_ONLY), _PIECE_CHARS):
            yield Piece(text, f"{name} docstrings", name)


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # warnings about the standard library's own code are irrelevant
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _prose(tree: ast.Module, *, all_strings: bool) -> str:
    """The docstrings of a module in source order, or all its multi-line strings."""
    if all_strings:
        values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return "\n\n".join(value.strip() for value in values if isinstance(value, str) and "\n" in value)
    return "\n\n".join(_docstrings(tree))


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if doc := ast.get_docstring(node):
        yield doc
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def cut(text: str, n_chars: int) -> list[tuple[int, str]]:
    """Cut at blank lines into pieces of about `n_chars`, each with its first line number; drops a short remainder."""
    pieces: list[tuple[int, str]] = []
    line, start = 1, 0
    while len(text) - start > 1.5 * n_chars:
        end = text.find("\n\n", start + n_chars)
        if end < 0:
            break
        end += 2
        pieces.append((line, text[start:end]))
        line += text.count("\n", start, end)
        start = end
    rest = text[start:]
    return [*pieces, (line, rest)] if len(rest.strip()) >= _MIN_CHARS else pieces
