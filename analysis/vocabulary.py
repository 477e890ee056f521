"""Token ids to text; characters that several tokens make up are put together."""

from collections.abc import Sequence

LONGEST = 4
"""Bytes of the longest character in UTF-8."""


class Vocabulary:
    """The bytes of every token."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self._alone: list[str | None] = [_decoded(part) for part in self.tokens]

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to a text; nothing for an id that the tokenizer does not have."""
        return self.tokens[token] if 0 <= token < len(self.tokens) else b""

    def text(self, token: int) -> str:
        """One token alone; `�` for parts of characters, `#id` for an id without text."""
        return self.bytes_of(token).decode(errors="replace") or f"#{token}"

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token in a row: a character stands whole at its first token, and the others add nothing."""
        n = len(self._alone)
        alone = [(self._alone[t] if 0 <= t < n else "") for t in tokens]
        if None not in alone:
            return [text or f"#{t}" for text, t in zip(alone, tokens, strict=True)]
        return _split([self.bytes_of(t) or f"#{t}".encode() for t in tokens])


def _decoded(part: bytes) -> str | None:
    """The text of a token; None for a part of a character."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


def _split(parts: list[bytes]) -> list[str]:
    """Deal the characters of the whole text to the tokens in which they begin; a byte that is none becomes `�`."""
    whole = b"".join(parts)
    owner = [i for i, part in enumerate(parts) for _ in part]
    pieces = [""] * len(parts)
    at = 0
    for char in whole.decode(errors="surrogateescape"):
        broken = "\udc80" <= char <= "\udcff"
        pieces[owner[at]] += "\ufffd" if broken else char
        at += 1 if broken else len(char.encode())
    return pieces
