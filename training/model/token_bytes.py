"""The bytes of each token in a vocabulary, so that text can be decoded without the tokenizer."""

import json
import re
from functools import lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each id adds to a text; a token may be only part of a character.

    Supports byte-level vocabularies (GPT-2, Llama 3, SmolLM2), those with `▁` and byte fallback (Gemma, Llama 2), and any
    other that decodes token by token; special tokens are written out as their names.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """
    added = {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items()}
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    read = _reader(tokenizer)
    return [added[i] if i in added else b"" if piece is None else read(i, piece) for i, piece in enumerate(pieces)]


def _reader(tokenizer: Any) -> Any:
    """The decoder of pieces other than added tokens: (id, piece) → bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend is not None else ""
    if '"ByteLevel"' in decoder:
        return lambda _, piece: _from_byte_level(piece)
    if "▁" in decoder or "\\u2581" in decoder or '"Metaspace"' in decoder:
        return lambda _, piece: _from_metaspace(piece)
    return lambda i, _: tokenizer.decode([i]).encode()


def _from_metaspace(piece: str) -> bytes:
    match = _BYTE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace("▁", " ").encode()


def _from_byte_level(piece: str) -> bytes:
    """Decode a piece whose characters encode bytes; a piece with any other character is taken literally."""
    table = _byte_level_table()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """The byte of each character: printable Latin-1 bytes map to themselves, the others to characters 256, 257, … in order.

    This is the alphabet of byte-level BPE (Radford et al. 2019, GPT-2).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
