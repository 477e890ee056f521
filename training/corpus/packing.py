"""Pack documents into sequences of n_ctx tokens, each entirely for training or entirely held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from sae.errors import SaescopeError
from training.corpus.chat import encode_chat
from training.corpus.document import Document

# documents are tokenised in batches of about this size, and longer ones in parts, to bound memory
_BATCH_CHARS = 200_000
_PART_CHARS = 500_000


@dataclass(frozen=True)
class Packed:
    """A tokenised corpus."""

    tokens: Int32[np.ndarray, "n_seqs n_ctx"]
    held_out: Bool[np.ndarray, " n_seqs"]
    """True: the sequence isn't used for training or calibration."""
    eligible: Bool[np.ndarray, "n_seqs n_ctx"]
    """False: BOS, special tokens, and messages of other chat roles."""
    segments: Int64[np.ndarray, "n_segments 3"]
    """First row, number of tokens, document number; in row order. BOS belongs to no segment."""
    labels: list[dict[str, Any]]
    """Per document: its label, whether it is held out, and its number of tokens."""


@dataclass(eq=False)
class PackedDocument:
    """A document that is being packed."""

    label: str
    held_out: bool
    group: str = ""
    """Written to its label line if not empty."""
    number: int | None = None
    """Document number, in the order in which documents first complete a sequence."""


@dataclass
class Output:
    """The completed sequences."""

    n_seqs: int
    """Target number of sequences."""
    n_ctx: int
    progress: Callable[[int], None] = lambda _: None
    n_done: int = 0
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = np.zeros((self.n_seqs, self.n_ctx), dtype=np.int32)
        self.eligible = np.zeros((self.n_seqs, self.n_ctx), dtype=bool)
        self.held_out = np.zeros(self.n_seqs, dtype=bool)

    @property
    def full(self) -> bool:
        """Whether all sequences are complete."""
        return self.n_done == self.n_seqs

    def emit(self, packer: "Packer") -> None:
        """Store the sequence that a packer has filled."""
        self.tokens[self.n_done], self.eligible[self.n_done] = packer.tokens, packer.eligible
        self.held_out[self.n_done] = packer.held_out
        for at, n_tokens, doc in packer.segments:
            if doc.number is None:
                doc.number = len(self.labels)
                group = {"group": doc.group} if doc.group else {}
                self.labels.append({"label": doc.label, "held_out": doc.held_out, "n_tokens": 0, **group})
            self.labels[doc.number]["n_tokens"] += n_tokens
            self.segments.append((self.n_done * self.n_ctx + at, n_tokens, doc.number))
        self.n_done += 1
        self.progress(self.n_ctx)

    def packed(self) -> Packed:
        """The completed sequences."""
        done, segments = slice(self.n_done), np.array(self.segments, dtype=np.int64).reshape(-1, 3)
        return Packed(self.tokens[done], self.held_out[done], self.eligible[done], segments, self.labels)


class Packer:
    """Fills one sequence at a time, for one side of the split."""

    def __init__(self, out: Output, held_out: bool, bos: int | None) -> None:
        """`bos` is inserted at the start of every sequence and document; None inserts nothing."""
        self.out, self.held_out, self.bos = out, held_out, bos
        self._open()

    def _open(self) -> None:
        self.tokens = np.zeros(self.out.n_ctx, dtype=np.int32)
        self.eligible = np.zeros(self.out.n_ctx, dtype=bool)
        self.segments: list[tuple[int, int, PackedDocument]] = []
        self.at = 0

    def add(self, doc: PackedDocument, tokens: Int32[np.ndarray, " n"], eligible: Bool[np.ndarray, " n"]) -> None:
        """Append a document, or the next part of the last one; stops when the output is full."""
        while len(tokens) and not self.out.full:
            continued = bool(self.segments) and self.segments[-1][2] is doc
            if self.bos is not None and not continued:
                self.tokens[self.at] = self.bos
                self.at += 1
            n = min(self.out.n_ctx - self.at, len(tokens))
            if n:
                self._append(doc, continued, tokens[:n], eligible[:n])
                tokens, eligible = tokens[n:], eligible[n:]
            if self.at == self.out.n_ctx:
                self.out.emit(self)
                self._open()

    def _append(self, doc: PackedDocument, continued: bool, tokens: np.ndarray, eligible: np.ndarray) -> None:
        start, n = self.at, len(tokens)
        self.tokens[start : start + n], self.eligible[start : start + n] = tokens, eligible
        self.at += n
        if continued:
            start, before, _ = self.segments.pop()
            n += before
        self.segments.append((start, n, doc))


def is_held_out(key: str, share: float) -> bool:
    """Whether a document with this split key is held out; depends only on its hash, not on the rest of the corpus."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 < share


def pack(
    documents: Iterable[Document], tokenizer: Any, *, n_ctx: int, n_tokens: int, prepend_bos: bool, bos_id: int | None,
    special_ids: frozenset[int], held_out: float = 0.05, progress: Callable[[int], None] | None = None,
    finer: str | None = None,
) -> Packed:
    """Tokenise documents and pack them into `n_tokens // n_ctx` sequences, in the order in which they fill up.

    Each side of the split has its own open sequence, so that no sequence mixes both. With `prepend_bos`, BOS starts every
    sequence and every document; without, documents follow each other directly. A document that doesn't fit continues in
    the next sequence of its side. Text that spells out a special token is tokenised as plain text.

    Args:
        documents: read only as far as needed.
        tokenizer: a Hugging Face tokenizer.
        n_ctx: tokens per sequence, BOS included.
        n_tokens: total tokens, held-out ones included.
        prepend_bos: whether the model expects BOS.
        bos_id: needed if `prepend_bos`.
        special_ids: tokens that are never trained on.
        held_out: fraction of documents held out, by the hash of `Document.split_key`.
        progress: called with `n_ctx` after every sequence.
        finer: how to get more and shorter documents from the same text, for the error message if one side of the split
            is empty.

    Raises:
        SaescopeError: too little text, or one side of the split is empty.
    """
    assert bos_id is not None or not prepend_bos
    if n_ctx < 2 or n_tokens < 2 * n_ctx:
        raise SaescopeError(
            f"corpus.n_tokens = {n_tokens:,} with corpus.n_ctx = {n_ctx} gives fewer than two sequences, one to train on "
            f"and one held out; increase corpus.n_tokens to {2 * n_ctx:,} or more."
        )
    out = Output(n_tokens // n_ctx, n_ctx, progress or (lambda _: None))
    packers = [Packer(out, side, bos_id if prepend_bos else None) for side in (False, True)]
    special = np.fromiter(special_ids, dtype=np.int32)
    doc, n_found, last = PackedDocument("", False), 0, None
    for document, tokens, eligible in encoded(documents, tokenizer, bos_id if prepend_bos else None):
        if document is not last:  # long documents come in parts
            doc, last = PackedDocument(document.label, is_held_out(document.split_key, held_out)), document
        packers[doc.held_out].add(doc, tokens, eligible & ~np.isin(tokens, special))
        n_found += len(tokens)
        if out.full:
            break
    return _checked(out, n_tokens, n_found, held_out, finer)


def _checked(out: Output, n_tokens: int, n_found: int, held_out: float, finer: str | None) -> Packed:
    one_sided = _one_sided(out, held_out, finer)
    if not out.full:
        enough = f"set corpus.n_tokens={out.n_done * out.n_ctx}, or " if out.n_done > 1 else ""
        also = f" Even then, {one_sided}" if one_sided and out.n_done > 1 else ""
        raise SaescopeError(
            f"the corpus ends after {n_found:,} tokens, which fill {out.n_done:,} of {out.n_seqs:,} sequences of "
            f"{out.n_ctx}, but corpus.n_tokens = {n_tokens:,}: {enough}add more text.{also}"
        )
    if one_sided:
        raise SaescopeError(one_sided)
    if not out.eligible[~out.held_out].any():
        raise SaescopeError("no tokens to train on: no message has a role in chat_roles, or all tokens are special.")
    return out.packed()


def _one_sided(out: Output, held_out: float, finer: str | None) -> str | None:
    """The error message if all completed sequences are on one side of the split, else None."""
    for side, name, move in ((True, "held out", "raise"), (False, "for training", "lower")):
        if not (out.held_out[: out.n_done] == side).any():
            more = "increase corpus.n_tokens, " if out.full else ""
            return (
                f"none of the {out.n_done:,} sequences ({_documents(len(out.labels))}) is {name}, since documents are held "
                f"out whole; {more}{finer or 'use more and shorter documents'}, or {move} corpus.held_out = {held_out:g}."
            )
    return None


def _documents(n: int) -> str:
    return f"{n:,} document{'' if n == 1 else 's'}"


def encoded(
    documents: Iterable[Document], tokenizer: Any, bos: int | None
) -> Iterator[tuple[Document, Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """Tokenise documents, long ones in parts, with a mask of eligible tokens (by chat role)."""
    for batch in _batches(documents):
        plain = iter(_tokenise([text for document, text in batch if document.messages is None], tokenizer))
        for document, _ in batch:
            if document.messages is None:
                tokens = next(plain)
                yield document, tokens, np.ones(len(tokens), dtype=bool)
            else:
                tokens, eligible = encode_chat(document, tokenizer)
                # the packer writes BOS itself
                skip = int(bos is not None and len(tokens) > 0 and tokens[0] == bos)
                yield document, tokens[skip:], eligible[skip:]


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[Document, str]]]:
    batch: list[tuple[Document, str]] = []
    n_chars = 0
    for document in documents:
        for text in parts(document.text) if document.messages is None else [document.text]:
            batch.append((document, text))
            n_chars += len(text)
            if n_chars >= _BATCH_CHARS:
                yield batch
                batch, n_chars = [], 0
    if batch:
        yield batch


def parts(text: str, n_chars: int = _PART_CHARS) -> Iterator[str]:
    """Split a text into parts of at most `n_chars`, at line ends where possible."""
    start = 0
    while len(text) - start > n_chars:
        end = text.rfind("\n", start, start + n_chars) + 1 or start + n_chars
        yield text[start:end]
        start = end
    yield text[start:]


def _tokenise(texts: list[str], tokenizer: Any) -> list[Int32[np.ndarray, " n"]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
