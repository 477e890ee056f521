"""A document of a corpus."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text or a conversation, with its origin."""

    text: str
    """For a conversation, its messages joined, without the chat template."""
    label: str
    """Its origin: a file, a file and line, the value of a label field, a row number."""
    group: str = ""
    """Documents of one group are on the same side of the held-out split; empty: the document is its own group."""
    messages: tuple[dict[str, str], ...] | None = None
    """The messages of a conversation, each with role and content."""
    roles: tuple[str, ...] = ()
    """The roles whose tokens are trained on; the others are context."""

    @property
    def split_key(self) -> str:
        """The string that the held-out split hashes."""
        return self.group or self.text
