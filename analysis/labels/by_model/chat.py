"""Interface to a chat model, local or remote."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from sae.errors import SaescopeError


@dataclass(frozen=True)
class Question:
    """A prompt and the expected form of the answer."""

    text: str
    begin: str = ""
    """Expected start of the answer; local models are forced to start with it."""
    end: str = ""
    """Stop string."""


@dataclass(frozen=True)
class Answer:
    """An answer. Its text is untrusted."""

    text: str
    n_in: int | None = None
    """Prompt tokens; None if not reported."""
    n_out: int | None = None
    """Answer tokens; None if not reported."""


class Refused(SaescopeError):
    """The model refused this question, for example for its length; others may still be answered."""


class Chat(ABC):
    """A model that answers independent questions."""

    source: str
    """The model and where it runs, as stored with each label."""
    n_parallel: int
    """Maximum number of concurrent questions, one per thread."""
    counted: str
    """How `count` counts, for messages."""

    @abstractmethod
    def ask(self, question: Question, max_tokens: int) -> Answer:
        """Answer a question with at most `max_tokens` tokens.

        Raises:
            Refused: this question was refused.
            SaescopeError: the model can't answer any question.
        """

    @abstractmethod
    def count(self, text: str) -> int:
        """Number of tokens in a text, possibly estimated."""

    @abstractmethod
    def stop(self) -> None:
        """Stop asking; pending retries give up."""

    @abstractmethod
    def close(self) -> None:
        """Release resources."""
