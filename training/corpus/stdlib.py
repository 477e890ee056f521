"""The text that every machine has: sources and docstrings of the interpreter's own standard library.

Modules are cut into pieces and the pieces are put in an order that only their names and a seed decide, so that a small
budget of tokens already sees a broad sample. Code and English alternate at random; all pieces of a module share a
group.
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

# tests and tables are not text; installed packages and build settings differ between machines
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages", "__pycache__", "__phello__",
}
_LEFT_OUT_STEMS = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
# a dictionary of manual pages, written as escaped strings
_PROSE_ONLY = "pydoc_data/topics.py"
_PIECE_CHARS = 6_000
_MIN_CHARS = 1_000


class Piece(NamedTuple):
    """A stretch of one module: some of its source, or some of its docstrings."""

    text: str
    label: str
    module: str


def stdlib_pieces(seed: int) -> Iterator[Piece]:
    """All pieces of the standard library in the order that `seed` gives."""
    # a hash and not a shuffle: a module more or less leaves the order of the others as it was
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
    """The modules taken, by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        # site-packages can be large: what is left out is not entered
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_STEMS)]
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_LEFT_OUT_STEMS)]
    return sorted((path.relative_to(root).as_posix(), path) for path in found)


def _all_pieces() -> Iterator[Piece]:
    for name, path in _modules():
        try:
            source = path.read_text(encoding="utf-8")
            tree = _parse(source)
        except (UnicodeDecodeError, SyntaxError):  # templates and samples of other encodings lie among the modules
            continue
        if name != _PROSE_ONLY:
            for line, text in cut(source, _PIECE_CHARS):
                yield Piece(text, f"{name}:{line}", name)
        for _, text in cut(_prose(tree, all_strings=name == _PROSE_ONLY), _PIECE_CHARS):
            yield Piece(text, f"{name} docstrings", name)


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # what the compiler thinks of the library's style is nobody's concern here
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _prose(tree: ast.Module, *, all_strings: bool) -> str:
    """The docstrings of a module in the order of its lines, or all its longer strings."""
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
    """Cut at blank lines into pieces of about `n_chars`, each with its first line's number; a short text gives none."""
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
