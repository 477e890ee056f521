"""Classes of Python text, told token by token, by hand."""

import numpy as np

from analysis.evals.probes.python_text import CLASSES, NONE, byte_classes, token_classes

SOURCE = '''"""Módule — doc."""
import os  # a rémark
class A:
    \'\'\'of a class\'\'\'
    def f(self, x=0x1F):
        "of a function"
        return x + 1.5 if "é" else b'no'
'''


def named(source: str, pieces: list[str]) -> dict[str, str]:
    """The class of each piece, by its text without spaces."""
    classes = byte_classes(source)
    assert classes is not None and "".join(pieces) == source
    found = token_classes(classes, [piece.encode() for piece in pieces])
    return {piece.strip(): "none" if c == NONE else CLASSES[c] for piece, c in zip(pieces, found, strict=True)}


def test_every_class() -> None:
    pieces, rest = [], SOURCE
    for cut in ('"""Mód', 'ule — doc."""', "\n", "import", " os", "  # a ré", "mark", "\nclass", " A", ":", "\n    '''of a",
                " class'''", "\n    def", " f", "(", "self", ",", " x", "=", "0x1F", "):", '\n        "of a function"',
                "\n        return", " x", " +", " 1.5", " if", ' "é"', " else", " b'no'", "\n"):
        assert rest.startswith(cut), (cut, rest[:20])
        pieces.append(cut)
        rest = rest.removeprefix(cut)
    found = named(SOURCE, pieces)
    expected = {
        '"""Mód': "docstring", 'ule — doc."""': "docstring", "": "none", "import": "keyword", "os": "identifier",
        "# a ré": "comment", "mark": "comment", "class": "keyword", "A": "identifier", ":": "operator",
        "'''of a": "docstring", "class'''": "docstring", "def": "keyword", "f": "identifier", "(": "operator",
        "self": "identifier", ",": "operator", "x": "identifier", "=": "operator", "0x1F": "number", "):": "operator",
        '"of a function"': "docstring", "return": "keyword", "+": "operator", "1.5": "number", "if": "keyword",
        '"é"': "string", "else": "keyword", "b'no'": "string",
    }
    assert found == expected


def test_tokens_across_a_border_have_no_label() -> None:
    assert named("f('a')", ["f", "('", "a", "')"]) == {"f": "identifier", "('": "none", "a": "string", "')": "none"}
    # part of a character is of its character's class
    classes = byte_classes("x='é'")
    assert classes is not None
    found = token_classes(classes, [b"x", b"=", b"'", "é".encode()[:1], "é".encode()[1:], b"'"])
    assert [CLASSES[c] for c in found][2:] == ["string"] * 4


def test_no_string_but_a_docstring() -> None:
    assert named("x = 1\n'late'\n", ["x", " =", " 1", "\n'late'", "\n"])["'late'"] == "string"


def test_what_is_no_python_has_no_classes() -> None:
    assert byte_classes("It is prose, not Python.") is None
    assert byte_classes('"""never closed') is None
    assert byte_classes("x = 1\x00") is None
    empty = byte_classes("")
    assert empty is not None and np.array_equal(empty, np.zeros(0, dtype=np.int8))
