"""Labels of a corpus's tokens: their class in Python source, and the topic of their document."""

import json
import re
import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8, Int64

from analysis.evals.probes.python_text import NONE, byte_classes, token_classes
from training.corpus.tokens import Tokens

_STDLIB = "python-stdlib"
_LEAST_SHARE = 0.5
"""Minimum share of a text that must parse to count as Python source; it may be truncated anywhere."""
_MOST_LINES_CUT = 60


class DocumentFacts(NamedTuple):
    """A line of a cache's documents.jsonl."""

    label: str
    module: str | None = None
    """Standard-library module that it is an excerpt of."""


def documents_of(tokens: Tokens) -> list[DocumentFacts]:
    """Documents of a corpus, by index; empty for a corpus without text."""
    if tokens.folder is None:
        return []
    lines = (tokens.folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [source.get("kind") for source in tokens.made_from.get("corpus", {}).get("sources", [])]
    # in a mixture, labels are prefixed with their source
    begin = "" if kinds == [_STDLIB] else f"{_STDLIB}: "
    labels = [json.loads(line)["label"] for line in lines]
    return [DocumentFacts(label, _module_name(label, begin) if _STDLIB in kinds else None) for label in labels]


def _module_name(label: str, begin: str) -> str | None:
    found = re.fullmatch(r"(.+\.py)(?::\d+| docstrings)", label.removeprefix(begin)) if label.startswith(begin) else None
    return found[1] if found else None


def corpus_classes(tokens: Tokens, pieces: Sequence[bytes], seqs: Int64[np.ndarray, " n"]) -> Int8[np.ndarray, "n n_ctx"]:
    """Class of each token of some sequences (`python_text.CLASSES`), `NONE` if it has none or is unknown.

    Args:
        tokens: tokens of a corpus with text.
        pieces: bytes of each token of the vocabulary.
        seqs: indices of the sequences.
    """
    assert tokens.folder is not None and tokens.tokens is not None
    out = np.full(tokens.eligible.shape, NONE, dtype=np.int8)
    flat, ids = out.reshape(-1), tokens.tokens.reshape(-1)
    facts = documents_of(tokens)
    segments = np.load(tokens.folder / "segments.npy")
    wanted = np.isin(segments[:, 0] // tokens.n_ctx, seqs)
    for document in np.unique(segments[wanted, 2]).tolist():
        mine = segments[segments[:, 2] == document]
        rows = np.concatenate([np.arange(first, first + n) for first, n, _ in mine])
        parts = [pieces[i] if i < len(pieces) else b"" for i in ids[rows].tolist()]
        classes = text_classes(b"".join(parts), facts[document])
        if classes is not None:
            flat[rows] = token_classes(classes, parts)
    return out[seqs]


def text_classes(text: bytes, facts: DocumentFacts) -> Int8[np.ndarray, " n_bytes"] | None:
    """Class of each byte of a document's first tokens; None if it isn't recognised as Python source.

    An excerpt of the standard library is looked up in its module, so that one that starts inside a string is classified
    correctly. Any other text is parsed by itself, up to the last line to which it parses.
    """
    if facts.module is not None:
        module = _module(facts.module)
        if module is None or facts.label.endswith("docstrings"):
            return None
        source, classes = module
        line = re.search(r":(\d+)$", facts.label)
        begin = _line_start(source, int(line[1])) if line else 0
        at = source.find(text, begin)
        return None if at < 0 else classes[at : at + len(text)]
    return _prefix_classes(text)


@lru_cache(maxsize=512)
def _module(name: str) -> tuple[bytes, Int8[np.ndarray, " n_bytes"]] | None:
    """Source of a standard-library module, and the classes of its bytes."""
    path = Path(sysconfig.get_path("stdlib"), name)
    if not path.is_file():
        return None
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    classes = byte_classes(source)
    return None if classes is None else (source.encode(), classes)


def _line_start(source: bytes, line: int) -> int:
    """Byte offset of a line, counted from 1."""
    at = 0
    for _ in range(line - 1):
        at = source.find(b"\n", at) + 1
    return at


def _prefix_classes(text: bytes) -> Int8[np.ndarray, " n_bytes"] | None:
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        lines = text[: error.start].decode().split("\n")
    for n in range(len(lines), max(len(lines) - _MOST_LINES_CUT, 1), -1):
        source = "\n".join(lines[:n])
        classes = byte_classes(source)
        if classes is not None:
            enough = len(lines) > 2 and len(classes) >= _LEAST_SHARE * len(text)
            return np.concatenate([classes, np.full(len(text) - len(classes), NONE, np.int8)]) if enough else None
    return None


def topics_of(tokens: Tokens) -> list[str | None]:
    """Topic of each document: the package of a standard-library module, else its label if other documents share it.

    Labels are shared if the corpus was read with `label_field`; file names and row numbers are not.
    """
    facts = documents_of(tokens)
    labels = [one.label for one in facts]
    shared = {label for label in set(labels) if labels.count(label) > 1} if len(set(labels)) < len(labels) else set()
    return [_package(one.module) if one.module is not None else (one.label if one.label in shared else None)
            for one in facts]


def _package(module: str) -> str | None:
    return module.partition("/")[0] if "/" in module else None
