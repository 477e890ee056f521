"""A language model that answers questions, wherever it runs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from sae.errors import SaescopeError


@dataclass(frozen=True)
class Question:
    """A prompt, and the form of its answer."""

    text: str
    begin: str = ""
    """What a good answer begins with; small models are made to begin so."""
    end: str = ""
    """What ends it."""


@dataclass(frozen=True)
class Answer:
    """What came back. The text is a stranger's: anything may stand in it."""

    text: str
    n_in: int | None = None
    """Tokens of the prompt; None where the model does not say."""
    n_out: int | None = None
    """Tokens of the answer."""


class Refused(SaescopeError):
    """This question is not answered, for one such as its length; another one may be."""


class Chat(ABC):
    """Answers questions, each on its own."""

    source: str
    """The model and where it runs, as it is written beside each label."""
    n_parallel: int
    """Questions that may be asked at once, from as many threads."""
    counted: str
    """How `count` counts, in words."""

    @abstractmethod
    def ask(self, question: Question, max_tokens: int) -> Answer:
        """The answer to a question, of so many tokens at most.

        Raises:
            Refused: this one is not taken.
            SaescopeError: there is no answer to be had to any.
        """

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of a text, as well as can be told beforehand."""

    @abstractmethod
    def stop(self) -> None:
        """Ask no more: who waits to try again gives up."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""
