"""Rows without text, as sequences of n_ctx consecutive rows with a held-out split.

The split holds out whole sequences; or documents, if the rows have them; or the rows given by the user.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from sae.errors import SaescopeError, first_line
from sae.io.arrays import map_array
from sae.io.paths import user_path
from training.config.schema import Config, CorpusConfig
from training.corpus.packing import is_held_out
from training.corpus.tokens import Tokens
from training.memory import require


class RowFacts(NamedTuple):
    """Optional facts about each of the user's own rows."""

    documents: Int64[np.ndarray, " n_rows"] | None = None
    """Document number of each row."""
    held_out: Bool[np.ndarray, " n_rows"] | None = None
    """Whether each row is held out; None splits by `corpus.held_out`."""


def row_facts(documents: object, held_out: object, n_rows: int) -> RowFacts:
    """Check arrays with one entry per row.

    Args:
        documents: integers, or None.
        held_out: booleans, or row numbers, or None.
        n_rows: number of rows.

    Raises:
        SaescopeError: wrong dtype, wrong length, or row numbers out of range.
    """
    found = RowFacts()
    if documents is not None:
        numbers = _vector(documents, "corpus.documents", "iu")
        _check_length(numbers, n_rows, "corpus.documents")
        found = found._replace(documents=numbers.astype(np.int64))
    if held_out is not None:
        marks = _vector(held_out, "corpus.held_out_rows", "biu")
        if marks.dtype.kind != "b":
            if len(marks) and not 0 <= int(marks.min()) <= int(marks.max()) < n_rows:
                wrong = int(marks.min()) if marks.min() < 0 else int(marks.max())
                raise SaescopeError(f"corpus.held_out_rows has row {wrong:,}, but there are {n_rows:,} (from 0).")
            marks = np.isin(np.arange(n_rows), marks)
        _check_length(marks, n_rows, "corpus.held_out_rows")
        found = found._replace(held_out=marks)
    return found


def read_row_facts(corpus: CorpusConfig, n_rows: int) -> RowFacts:
    """Read the files given in a config."""
    return row_facts(_read(corpus.documents, "documents"), _read(corpus.held_out_rows, "held_out_rows"), n_rows)


def row_tokens(config: Config, n_rows: int, identity: dict[str, Any], rows: RowFacts) -> Tokens:
    """Arrange the user's own rows as sequences of n_ctx consecutive rows; an incomplete one at the end is dropped."""
    facts: dict[str, Any] = {"acts": identity}
    for key, values in (("documents", rows.documents), ("held_out_rows", rows.held_out)):
        if values is not None:
            facts[key] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return _rows_as_tokens(config, n_rows, config.corpus.sources[0].source, facts, rows)


def synthetic_tokens(config: Config) -> Tokens:
    """Arrange n_tokens synthetic rows as sequences."""
    assert config.corpus.synthetic is not None
    facts = {"synthetic": config.corpus.synthetic.model_dump(mode="json"), "n_rows": config.corpus.n_tokens}
    return _rows_as_tokens(config, config.corpus.n_tokens, "corpus.synthetic", facts, RowFacts())


def what_is_split(config: Config, tokens: Tokens) -> str:
    """A message about the split of rows without text."""
    if tokens.row_held_out is not None:
        held = tokens.row_held_out
        n = "" if tokens.row_documents is None else f" of {len(np.unique(tokens.row_documents[held])):,} documents"
        return f"{int(held.sum()):,} of {held.size:,} rows{n} are held out"
    if not len(tokens.sequences(held_out=True)):
        return "no rows are held out, so there is no held-out evaluation"
    return (
        f"rows have no documents (corpus.documents): the split is by blocks of corpus.n_ctx = {config.corpus.n_ctx} "
        "consecutive rows, so a document may be on both sides"
    )


def _rows_as_tokens(config: Config, n_rows: int, name: str, facts: dict[str, Any], rows: RowFacts) -> Tokens:
    """Arrange rows without text as sequences. The split depends only on the hash of the sequence's or document's
    number."""
    n_ctx, share = config.corpus.n_ctx, config.corpus.held_out
    n_seqs = n_rows // n_ctx
    require(n_rows, f"{name}: the mask of {n_rows:,} rows", "use fewer rows (corpus.n_tokens)")
    shape, n = (n_seqs, n_ctx), n_seqs * n_ctx
    documents = None if rows.documents is None else rows.documents[:n].reshape(shape)
    facts |= {"n_ctx": n_ctx, "held_out": share}
    eligible = np.ones(shape, dtype=bool)
    if rows.held_out is None and documents is None:
        whole = np.fromiter((is_held_out(f"sequence {i}", share) for i in range(n_seqs)), bool, n_seqs)
        check_sides(whole, name, f"{n_seqs} sequences of n_ctx = {n_ctx}", n_rows, share)
        return Tokens(whole, eligible, None, facts)
    held_out = _of_documents(documents, share) if rows.held_out is None else rows.held_out[:n].reshape(shape)
    check_sides(held_out, name, f"{n:,} of them in sequences of n_ctx = {n_ctx}", n_rows, share)
    return Tokens(np.asarray(held_out.all(axis=1)), eligible, None, facts, row_documents=documents, row_held_out=held_out)


def _of_documents(documents: Int64[np.ndarray, "*shape"] | None, share: float) -> Bool[np.ndarray, "*shape"]:
    """Mask of the rows in held-out documents."""
    assert documents is not None
    numbers, of = np.unique(documents, return_inverse=True)
    chosen = np.fromiter((is_held_out(f"document {number}", share) for number in numbers), bool, len(numbers))
    return chosen[of].reshape(documents.shape)


def check_sides(held_out: Bool[np.ndarray, "*shape"], name: str, of: str, n_rows: int, share: float) -> None:
    """Check that neither side of the split is empty, unless nothing is to be held out."""
    if not held_out.size or held_out.all() or (share and not held_out.any()):
        raise SaescopeError(
            f"{name} has {n_rows} rows, {of}: too few for a training and a held-out part; lower corpus.n_ctx, add rows, or "
            "hold out none (corpus.held_out=0)."
        )


def _read(path: str | None, key: str) -> object:
    if path is None:
        return None
    file = user_path(path)
    if not file.is_file():
        raise SaescopeError(f"corpus.{key}: no file {path} (working directory: {Path.cwd()}).")
    try:
        return map_array(file)
    except (ValueError, OSError) as error:
        raise SaescopeError(f"corpus.{key}: {path} is not a readable .npy file ({first_line(error)}).") from None


def _vector(values: object, key: str, kinds: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 2 and array.dtype.kind in kinds:  # [n_seqs, n_ctx], as rows may be given
        array = array.reshape(-1)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        wanted = "integers" if "b" not in kinds else "booleans, or row numbers"
        raise SaescopeError(f"{key} needs one entry per row ({wanted}), not {array.dtype} of shape {list(array.shape)}.")
    return array


def _check_length(array: np.ndarray, n_rows: int, key: str) -> None:
    if len(array) != n_rows:
        raise SaescopeError(f"{key} has {len(array):,} entries, but there are {n_rows:,} rows; it needs one per row.")
