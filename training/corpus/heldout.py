"""The sequences that trainings are evaluated on: a little of each of many held-out documents.

    cache/NAME/heldout-N/     a cache of its own: up to N sequences, all held out

The cache itself holds few held-out documents where the budget of tokens is small. So evaluation has its own sequences, of
as many documents as it can: the corpus is read on, beyond the tokens that were packed, until the first `n_ctx` tokens of
each held-out document fill them; where there are too few documents, their next `n_ctx` tokens follow, and so on. The split
is the cache's: a document is held out by its hash.
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
    """Its first token's place in the document."""
    tokens: Int32[np.ndarray, " n"]
    eligible: Bool[np.ndarray, " n"]


def heldout_tokens(config: Config, load: Callable[[], Model], cache: Tokens, n_seqs: int) -> Tokens:
    """Open a cache's `n_seqs` sequences for evaluation, making them first if they are not there.

    They are fewer where the corpus has fewer held-out tokens. `load` gives the model, which is needed only to make them.
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
    """Up to `n_seqs` sequences of `n_ctx` tokens of held-out documents, as little of each as fills them.

    Documents are packed as training's are. Those of one group share what a document without a group has alone; of equal
    texts only the first counts.

    Args:
        documents: read until the first piece of each document or group fills the sequences.
        tokenizer: of Hugging Face.
        n_ctx: tokens per sequence, BOS included.
        n_seqs: sequences at most.
        bos: the BOS token, if the model wants it.
        special_ids: tokens that are never eligible.
        held_out: share of documents held out.
    """
    length, special = n_ctx - (bos is not None), np.fromiter(special_ids, dtype=np.int32)
    units: dict[str, list[_Piece]] = {}
    n_filled, last = 0, None
    for document, tokens, eligible in encoded(_heldout(documents, held_out), tokenizer, bos):
        if document is last:  # a long one comes in parts, and the first is more than enough
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
    """Held-out documents, each text once."""
    seen: set[str] = set()
    for document in documents:
        if is_held_out(document.split_key, share) and document.text not in seen:
            seen.add(document.text)
            yield document
