"""From documents to sequences of n_ctx tokens, each wholly for training or wholly held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from sae.errors import SaescopeError
from training.corpus.chat import encode_chat
from training.corpus.document import Document

# documents are tokenised in batches of about this size, and longer ones in parts: both bound what is in memory
_BATCH_CHARS = 200_000
_PART_CHARS = 500_000


@dataclass(frozen=True)
class Packed:
    """A corpus as tokens."""

    tokens: Int32[np.ndarray, "n_seqs n_ctx"]
    held_out: Bool[np.ndarray, " n_seqs"]
    """True: no training or calibration sees this sequence."""
    eligible: Bool[np.ndarray, "n_seqs n_ctx"]
    """False: BOS, special tokens, and what chat roles that were not chosen said."""
    segments: Int64[np.ndarray, "n_segments 3"]
    """First row, number of tokens, number of the document; in row order. BOS belongs to no segment."""
    labels: list[dict[str, Any]]
    """Per document its label, whether it is held out, and how many of its tokens are here."""


@dataclass(eq=False)
class PackedDocument:
    """A document on its way into sequences."""

    label: str
    held_out: bool
    group: str = ""
    """Goes into its label if there is one."""
    number: int | None = None
    """In the order in which documents first complete a sequence."""


@dataclass
class Output:
    """The sequences that are complete."""

    n_seqs: int
    """How many there will be."""
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
        """Whether all are."""
        return self.n_done == self.n_seqs

    def emit(self, packer: "Packer") -> None:
        """Take over the sequence that a packer has filled."""
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
        """What is complete."""
        done, segments = slice(self.n_done), np.array(self.segments, dtype=np.int64).reshape(-1, 3)
        return Packed(self.tokens[done], self.held_out[done], self.eligible[done], segments, self.labels)


class Packer:
    """Fills one sequence at a time, of one side of the split."""

    def __init__(self, out: Output, held_out: bool, bos: int | None) -> None:
        """`bos` opens sequences and documents; None for neither."""
        self.out, self.held_out, self.bos = out, held_out, bos
        self._open()

    def _open(self) -> None:
        self.tokens = np.zeros(self.out.n_ctx, dtype=np.int32)
        self.eligible = np.zeros(self.out.n_ctx, dtype=bool)
        self.segments: list[tuple[int, int, PackedDocument]] = []
        self.at = 0

    def add(self, doc: PackedDocument, tokens: Int32[np.ndarray, " n"], eligible: Bool[np.ndarray, " n"]) -> None:
        """Append a document, or a further part of the one added last; stops when the output is full."""
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
    """Whether a document with this split key is held out: a function of its hash, whatever else the corpus holds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 < share


def pack(
    documents: Iterable[Document], tokenizer: Any, *, n_ctx: int, n_tokens: int, prepend_bos: bool, bos_id: int | None,
    special_ids: frozenset[int], held_out: float = 0.05, progress: Callable[[int], None] | None = None,
    finer: str | None = None,
) -> Packed:
    """Tokenise documents and pack them into `n_tokens // n_ctx` sequences, in the order in which these fill up.

    Each side of the split has its own open sequence, so that none mixes both. With `prepend_bos`, BOS opens every
    sequence and stands between the documents of one; without, documents follow each other directly. A document that
    does not fit goes on in the next sequence of its side. Text that spells a special token does not become one.

    Args:
        documents: read only as far as needed.
        tokenizer: of Hugging Face.
        n_ctx: tokens per sequence, BOS included.
        n_tokens: tokens asked for, held-out ones included.
        prepend_bos: the model's BOS policy.
        bos_id: needed if `prepend_bos`.
        special_ids: tokens that are never trained on.
        held_out: share of documents held out, by the hash of `Document.split_key`.
        progress: told of every `n_ctx` tokens done.
        finer: how the same text could be more and shorter documents, if it could: for the message where one side of
            the split stays empty.

    Raises:
        SaescopeError: too little text, or one side of the split stays empty.
    """
    assert bos_id is not None or not prepend_bos
    if n_ctx < 2 or n_tokens < 2 * n_ctx:
        raise SaescopeError(
            f"corpus.n_tokens = {n_tokens:,} with corpus.n_ctx = {n_ctx} makes fewer than two sequences, one to train "
            f"on and one held out; raise corpus.n_tokens to {2 * n_ctx:,} or more."
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
        also = f" Then too {one_sided}" if one_sided and out.n_done > 1 else ""
        raise SaescopeError(
            f"the corpus ends after {n_found:,} tokens, which fill {out.n_done:,} of {out.n_seqs:,} sequences of "
            f"{out.n_ctx}; corpus.n_tokens asks for {n_tokens:,}: {enough}give more text.{also}"
        )
    if one_sided:
        raise SaescopeError(one_sided)
    if not out.eligible[~out.held_out].any():
        raise SaescopeError("no token is left to train on: no message has a role of chat_roles, or all are special.")
    return out.packed()


def _one_sided(out: Output, held_out: float, finer: str | None) -> str | None:
    """What to do about a split that has put all complete sequences on one side."""
    for side, name, move in ((True, "held out", "raise"), (False, "for training", "lower")):
        if not (out.held_out[: out.n_done] == side).any():
            more = "raise corpus.n_tokens, " if out.full else ""
            return (
                f"none of the {out.n_done:,} sequences ({_documents(len(out.labels))}) is {name}, for a document is held "
                f"out as a whole or not at all; {more}{finer or 'give more and shorter documents'}, or {move} "
                f"corpus.held_out = {held_out:g}."
            )
    return None


def _documents(n: int) -> str:
    return f"{n:,} document{'' if n == 1 else 's'}"


def encoded(
    documents: Iterable[Document], tokenizer: Any, bos: int | None
) -> Iterator[tuple[Document, Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """Documents as tokens, long ones in parts, with what their roles make eligible."""
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
    """A text in parts of at most `n_chars`, cut behind a line's end where there is one."""
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
