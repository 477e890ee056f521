"""Classes of tokens in Python source, from Python's own tokenizer: comment, docstring, string, identifier, keyword, ...

A language model's token gets a label if all its non-whitespace characters are of one class; tokens that cross a boundary
(`("`, `x.`) have none.
"""

import ast
import io
import keyword
import tokenize
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

CLASSES = ("comment", "docstring", "string", "identifier", "keyword", "number", "operator")
NONE = -1
"""No label: whitespace only, or a token that crosses a boundary."""
_KINDS = {tokenize.COMMENT: "comment", tokenize.STRING: "string", tokenize.NUMBER: "number", tokenize.OP: "operator"}
# f-strings are one STRING up to Python 3.11; from 3.12 on, the expressions inside braces are code
_STRING_PARTS = ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END", "TSTRING_START", "TSTRING_MIDDLE", "TSTRING_END")
_KINDS |= {getattr(tokenize, name): "string" for name in _STRING_PARTS if hasattr(tokenize, name)}


def byte_classes(source: str) -> Int8[np.ndarray, " n_bytes"] | None:
    """Class of each byte of a module's UTF-8 text, `NONE` between tokens; None if the source doesn't parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):  # doesn't parse
        return None
    starts = _line_starts(source)
    lines = source.splitlines(keepends=True)
    docstrings = _docstring_lines(tree)
    out = np.full(len(source.encode()), NONE, dtype=np.int8)
    for token in tokens:
        kind = _kind(token, docstrings)
        if kind is not None:
            start, stop = (_at(starts, lines, *place) for place in (token.start, token.end))
            out[start:stop] = CLASSES.index(kind)
    spaces = np.frombuffer(source.encode(), dtype=np.uint8)
    out[np.isin(spaces, np.frombuffer(b" \t\r\n\f\v", dtype=np.uint8))] = NONE
    return out


def _kind(token: tokenize.TokenInfo, docstrings: set[tuple[int, int]]) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "identifier"
    if token.type == tokenize.STRING and token.start in docstrings:
        return "docstring"
    return _KINDS.get(token.type)


def _docstring_lines(tree: ast.Module) -> set[tuple[int, int]]:
    """Start positions of docstrings, (line, column in characters) as in the tokenizer."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                # only whitespace precedes a docstring, so byte and character offsets agree
                found.add((first.lineno, first.col_offset))
    return found


def _line_starts(source: str) -> list[int]:
    """Byte offset of each line, and of the end of the text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    return starts


def _at(starts: Sequence[int], lines: Sequence[str], line: int, column: int) -> int:
    """Byte offset of a tokenizer position: line from 1, column in characters."""
    if line > len(lines):
        return starts[-1]
    return starts[line - 1] + len(lines[line - 1][:column].encode())


def token_classes(classes: Int8[np.ndarray, " n_bytes"], pieces: Sequence[bytes]) -> Int8[np.ndarray, " n_tokens"]:
    """Class of each token of a text: the common class of its bytes that have one; `NONE` for none or several.

    Args:
        classes: classes of the text's bytes, from the first token on.
        pieces: bytes of each token.
    """
    ends = np.cumsum([len(piece) for piece in pieces])
    assert not len(ends) or ends[-1] <= len(classes), "more text than there are classes"
    out = np.full(len(pieces), NONE, dtype=np.int8)
    for i, (end, piece) in enumerate(zip(ends.tolist(), pieces, strict=True)):
        found = np.unique(classes[end - len(piece) : end])
        found = found[found != NONE]
        if len(found) == 1:
            out[i] = found[0]
    return out
