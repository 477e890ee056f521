"""A document of a corpus."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text, or a conversation, and where it came from."""

    text: str
    """For a conversation its messages one after another, unrendered."""
    label: str
    """Where it came from: a file, a file and line, the value of a label field, a row number."""
    group: str = ""
    """Documents of one group fall on the same side of the held-out split; empty: the text is its own group."""
    messages: tuple[dict[str, str], ...] | None = None
    """A conversation's messages: role and content each."""
    roles: tuple[str, ...] = ()
    """The roles whose tokens are trained on; the others are context."""

    @property
    def split_key(self) -> str:
        """What the held-out split hashes."""
        return self.group or self.text
