"""Token ids to text; characters split over several tokens are reassembled."""

from collections.abc import Sequence

LONGEST = 4
"""Maximum bytes of a character in UTF-8."""


class Vocabulary:
    """The bytes of every token."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self._alone: list[str | None] = [_decoded(part) for part in self.tokens]

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; empty for unknown ids."""
        return self.tokens[token] if 0 <= token < len(self.tokens) else b""

    def text(self, token: int) -> str:
        """A single token as text; `�` for parts of characters, `#id` for ids without text."""
        return self.bytes_of(token).decode(errors="replace") or f"#{token}"

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of a sequence. A split character is placed at its first token; the others get ""."""
        n = len(self._alone)
        alone = [(self._alone[t] if 0 <= t < n else "") for t in tokens]
        if None not in alone:
            return [text or f"#{t}" for text, t in zip(alone, tokens, strict=True)]
        return _split([self.bytes_of(t) or f"#{t}".encode() for t in tokens])


def _decoded(part: bytes) -> str | None:
    """Decode a token; None for a part of a character."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


def _split(parts: list[bytes]) -> list[str]:
    """Assign each character to the token in which it begins; invalid bytes become `�`."""
    whole = b"".join(parts)
    owner = [i for i, part in enumerate(parts) for _ in part]
    pieces = [""] * len(parts)
    at = 0
    for char in whole.decode(errors="surrogateescape"):
        broken = "\udc80" <= char <= "\udcff"
        pieces[owner[at]] += "\ufffd" if broken else char
        at += 1 if broken else len(char.encode())
    return pieces
