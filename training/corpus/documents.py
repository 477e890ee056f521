"""Read documents from text sources: built-in corpora, files, any `datasets` name, and weighted mixtures of them.

The same sources and seed give the same documents in the same order.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.files import files_of, opened, read_text
from training.corpus.hub import builder, dataset_rows, is_local
from training.corpus.parquet import parquet_rows
from training.corpus.rows import from_rows, jsonl_rows

_ROW_FACTS = ("field", "label_field", "chat_roles", "split", "subset", "revision")


def documents(sources: Sequence[TextSource], seed: int = 0) -> Iterator[Document]:
    """The documents of a mixture, each drawn from a source with probability proportional to its weight.

    Weights count documents, not tokens. When a source is exhausted, the others continue in proportion. Documents without
    text are skipped.

    Args:
        sources: one or more; with several, labels start with the source.
        seed: seed of the sampling, and of the order of python-stdlib.

    Raises:
        SaescopeError: a source is missing, empty or unreadable.
    """
    # open all before reading any, so that a missing file is reported at once
    streams = [_nonempty(_valid(_read(source, seed)), source) for source in sources]
    if len(streams) == 1:
        yield from streams[0]
        return
    rng, weights = random.Random(seed), [source.weight for source in sources]
    while any(weights):
        i = _draw(weights, rng.random())
        document = next(streams[i], None)
        if document is None:
            weights[i] = 0.0
        else:
            yield document._replace(label=f"{sources[i].source}: {document.label}")


def finer(sources: Sequence[TextSource]) -> str | None:
    """For an error message: how to get more and shorter documents if whole files are documents; None if they aren't."""
    whole = [source.source for source in sources if source.kind == "text" and source.split in (None, "file")]
    if not whole:
        return None
    how = f"'corpus.sources={{source: {whole[0]}, split: blank-line}}'"
    return f"split the text into paragraphs ({how if len(sources) == 1 else f'split: blank-line for {whole[0]}'})"


def only_document(sources: Sequence[TextSource]) -> Path | None:
    """The file that is the only document of a corpus, if that is clear without reading it; else None."""
    if len(sources) > 1 or finer(sources) is None:
        return None
    files = files_of(sources[0])
    return files[0] if len(files) == 1 else None


def identity(sources: Sequence[TextSource]) -> dict[str, Any]:
    """Facts that identify the content, for manifests: digests of files, the Python version, a dataset's name and revision.

    Paths are left out, so that moved files are still the same corpus.
    """
    return {"sources": [_identity(source) for source in sources]}


def _identity(source: TextSource) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": source.kind, "weight": source.weight}
    if source.kind == "python-stdlib":
        from training.corpus.stdlib import stdlib_identity

        return {**facts, **stdlib_identity()}
    if source.kind == "simple-sentences":
        from training.corpus.sentences import sentences_identity

        return {**facts, **sentences_identity()}
    keys = ("split",) if source.kind == "text" else _ROW_FACTS
    chosen = {key: getattr(source, key) for key in keys}
    if source.chat_roles is not None:
        chosen["chat_roles"] = list(source.chat_roles)
    if source.kind == "datasets":
        chosen["split"] = source.split or "train"
    if source.kind == "datasets" and not is_local(source.rest):
        return {**facts, **chosen, "name": source.rest}
    return {**facts, **chosen, **_digest(files_of(source))}


def _digest(files: Sequence[Path]) -> dict[str, Any]:
    """One sha256 over the digests of all files, in order."""
    whole = hashlib.sha256()
    for path in files:
        with opened(path) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return {"n_files": len(files), "sha256": whole.hexdigest()}


def _draw(weights: Sequence[float], uniform: float) -> int:
    """The index where the cumulative weight exceeds `uniform` times the total."""
    left = uniform * sum(weights)
    for i, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return i
    return max(i for i, weight in enumerate(weights) if weight)


def _valid(documents: Iterable[Document]) -> Iterator[Document]:
    """Drop empty documents, and replace lone surrogates, which tokenizers reject, by question marks."""
    for document in documents:
        if document.text.strip():
            yield document._replace(text=_encodable(document.text), messages=_encodable_messages(document.messages))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _encodable_messages(messages: tuple[dict[str, str], ...] | None) -> tuple[dict[str, str], ...] | None:
    if messages is None:
        return None
    return tuple({key: _encodable(value) for key, value in message.items()} for message in messages)


def _nonempty(documents: Iterator[Document], source: TextSource) -> Iterator[Document]:
    first = next(documents, None)
    if first is None:
        raise SaescopeError(f"{source.source} contains no text; choose another corpus.")
    yield first
    yield from documents


def _read(source: TextSource, seed: int) -> Iterator[Document]:
    if source.kind == "python-stdlib":
        return _read_stdlib(seed)
    if source.kind == "simple-sentences":
        return _read_sentences(seed)
    if source.kind == "text":
        return read_text(files_of(source), source.split or "file")
    if source.kind == "jsonl":
        return from_rows(jsonl_rows(files_of(source)), source)
    if source.kind == "parquet":
        return from_rows(parquet_rows(files_of(source), source), source)
    if source.kind == "datasets":
        return from_rows(dataset_rows(source, *builder(source)), source)
    raise SaescopeError(f"{source.source} contains activations, not text; it cannot be mixed and needs no model.")


def _read_stdlib(seed: int) -> Iterator[Document]:
    from training.corpus.stdlib import stdlib_pieces

    for text, label, module in stdlib_pieces(seed):
        yield Document(text, label, group=f"python-stdlib/{module}")


def _read_sentences(seed: int) -> Iterator[Document]:
    from training.corpus.sentences import sentences

    for number, text in enumerate(sentences(seed)):
        yield Document(text, f"simple-sentences:{number}")
