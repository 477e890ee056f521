"""Tokenise conversations with the tokenizer's chat template, with a mask of the chosen roles' tokens."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from sae.errors import SaescopeError
from training.corpus.document import Document

# replaces a message's content to find its position in the rendered text; from Unicode's private use area
_PLACEHOLDER = "\ue000\ue001\ue002"


def encode_chat(
    document: Document, tokenizer: Any
) -> tuple[Int32[np.ndarray, " n_tokens"], Bool[np.ndarray, " n_tokens"]]:
    """Tokenise a conversation; the mask marks tokens of messages of the chosen roles.

    What the template adds (headers, ends of turns, a default system message) is context. Only the template produces special
    tokens: a message that spells one out is tokenised as plain text.

    Raises:
        SaescopeError: no chat template, or the template rejects the conversation.
    """
    assert document.messages is not None
    if not tokenizer.is_fast:
        raise SaescopeError("chat_roles needs a fast tokenizer, but this model only has a slow one; use plain text.")
    text = _render(document, document.messages, tokenizer)
    spans = [_content_span(document, i, text, tokenizer) for i in range(len(document.messages))]
    chosen = [s for s, m in zip(spans, document.messages, strict=True) if s is not None and m["role"] in document.roles]
    ids, offsets = _encode(text, [span for span in spans if span is not None], tokenizer)
    eligible = np.zeros(len(ids), dtype=bool)
    for start, end in chosen:
        eligible |= (offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 0] < offsets[:, 1])
    return np.array(ids, dtype=np.int32), eligible


def _render(document: Document, messages: Sequence[dict[str, str]], tokenizer: Any) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise SaescopeError(
            "chat_roles is set, but this model's tokenizer has no chat template; use an instruction-tuned model, or plain "
            "text without chat_roles."
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise SaescopeError(
            f"{document.label}: the chat template rejects the conversation ({error}); its roles are {roles}."
        ) from None


def _content_span(document: Document, i: int, text: str, tokenizer: Any) -> tuple[int, int] | None:
    """The span of message i's content in the rendered text; None if the template drops it.

    The conversation is rendered again with a placeholder for the content: the text before and after it is the same in both
    renderings, whatever the template trims or adds.
    """
    assert document.messages is not None
    marked = [dict(message) for message in document.messages]
    marked[i]["content"] = _PLACEHOLDER
    before, found, behind = _render(document, marked, tokenizer).partition(_PLACEHOLDER)
    start, end = len(before), len(text) - len(behind)
    whole = found and start < end and text.startswith(before) and text.endswith(behind)
    return (start, end) if whole else None


def _encode(text: str, contents: Sequence[tuple[int, int]], tokenizer: Any) -> tuple[list[int], np.ndarray]:
    """Token ids and their `[n_tokens, 2]` character offsets."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    if not any(token in text[start:end] for start, end in contents for token in special):
        return _encode_piece(text, 0, tokenizer, plain=False)
    # only then in pieces: cutting at message boundaries can change the tokenisation there
    ids: list[int] = []
    offsets = [np.zeros((0, 2), dtype=np.int64)]
    edges = sorted({0, len(text), *(edge for span in contents for edge in span)})
    for start, end in pairwise(edges):
        piece, places = _encode_piece(text[start:end], start, tokenizer, plain=(start, end) in contents)
        ids += piece
        offsets.append(places)
    return ids, np.concatenate(offsets)


def _encode_piece(text: str, at: int, tokenizer: Any, *, plain: bool) -> tuple[list[int], np.ndarray]:
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True, verbose=False
    )
    return encoded["input_ids"], np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2) + at
