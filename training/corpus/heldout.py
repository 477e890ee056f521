"""The sequences for evaluation: short excerpts from as many held-out documents as possible.

    cache/NAME/heldout-N/     a separate cache of up to N sequences, all held out

With a small token budget the cache itself contains few held-out documents. So evaluation has its own sequences: the corpus
is read further, beyond the packed tokens, until the first `n_ctx` tokens of each held-out document fill them. If there are
too few documents, their next `n_ctx` tokens follow, and so on. The split is the same as the cache's: by a hash of the
document.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from sae.io.locks import locked
from training.config.schema import Config
from training.corpus.document import Document
from training.corpus.documents import documents
from training.corpus.packing import Output, Packed, PackedDocument, Packer, encoded, is_held_out
from training.corpus.tokens import Tokens, open_tokens, write_tokens
from training.model.language_model import Model
from training.storage.mirror import fetch_tokens, store_tokens


class _Piece(NamedTuple):
    """At most a sequence's worth of a document."""

    document: PackedDocument
    start: int
    """Position of its first token in the document."""
    tokens: Int32[np.ndarray, " n"]
    eligible: Bool[np.ndarray, " n"]


def heldout_tokens(config: Config, load: Callable[[], Model], cache: Tokens, n_seqs: int) -> Tokens:
    """Open a cache's `n_seqs` sequences for evaluation; create them first if they don't exist.

    There are fewer if the corpus has fewer held-out tokens. `load` returns the model; it is only called to create them.
    """
    assert cache.folder is not None
    folder = cache.folder / f"heldout-{n_seqs}"
    facts = {**cache.made_from, "heldout": {"n_seqs": n_seqs}}
    fetch_tokens(folder)
    if not (folder / "manifest.json").exists():
        with locked(folder, wait=True):
            if not (folder / "manifest.json").exists():
                corpus, model = config.corpus, load()
                packed = sample(
                    documents(corpus.sources, corpus.seed), model.tokenizer, n_ctx=corpus.n_ctx, n_seqs=n_seqs,
                    bos=model.bos_id if model.prepend_bos else None, special_ids=model.special_ids,
                    held_out=corpus.held_out,
                )
                write_tokens(
                    folder, packed.tokens, packed.held_out, packed.eligible, packed.segments, packed.labels, facts
                )
    store_tokens(folder)
    return open_tokens(folder, facts)


def sample(
    documents: Iterable[Document], tokenizer: Any, *, n_ctx: int, n_seqs: int, bos: int | None,
    special_ids: frozenset[int], held_out: float,
) -> Packed:
    """Pack up to `n_seqs` sequences of `n_ctx` tokens from held-out documents, with as few tokens from each as possible.

    Documents are packed as for training. A group counts as one document; duplicate texts are used once.

    Args:
        documents: read until the first piece of each document or group fills the sequences.
        tokenizer: a Hugging Face tokenizer.
        n_ctx: tokens per sequence, BOS included.
        n_seqs: maximum number of sequences.
        bos: the BOS token, if the model uses one.
        special_ids: tokens that are never eligible.
        held_out: fraction of documents held out.
    """
    length, special = n_ctx - (bos is not None), np.fromiter(special_ids, dtype=np.int32)
    units: dict[str, list[_Piece]] = {}
    n_filled, last = 0, None
    for document, tokens, eligible in encoded(_heldout(documents, held_out), tokenizer, bos):
        if document is last:  # long documents come in parts, and the first one is long enough
            continue
        last = document
        pieces = units.setdefault(document.split_key, [])
        if not pieces:
            n_filled += min(len(tokens) + (bos is not None), n_ctx)
        place = PackedDocument(document.label, True, document.group)
        eligible = eligible & ~np.isin(tokens, special)
        pieces += [
            _Piece(place, start, tokens[start : start + length], eligible[start : start + length])
            for start in range(0, min(len(tokens), n_seqs * length), length)
        ]
        if n_filled >= n_seqs * n_ctx:
            break
    out = Output(n_seqs, n_ctx)
    packer = Packer(out, True, bos)
    in_turn = (sorted(pieces, key=lambda piece: piece.start) for pieces in units.values())
    for turn in zip_longest(*in_turn):
        for piece in filter(None, turn):
            packer.add(piece.document, piece.tokens, piece.eligible)
    return out.packed()


def _heldout(documents: Iterable[Document], share: float) -> Iterator[Document]:
    """Held-out documents, without duplicate texts."""
    seen: set[str] = set()
    for document in documents:
        if is_held_out(document.split_key, share) and document.text not in seen:
            seen.add(document.text)
            yield document
