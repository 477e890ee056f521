"""A part of a sweep, for one of several processes: on several devices, or as jobs that know nothing of each other.

The parts fill one cache together, so that the language model reads each text once; then each trains its own members. An SAE
does not depend on which others are trained beside it, so neither does it on the parts.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sae.errors import SaescopeError
from training.config.schema import Config


class SweepPart(NamedTuple):
    """The `number`-th of `n`, from 1."""

    number: int
    n: int

    @classmethod
    def read(cls, text: str) -> "SweepPart":
        """From "2/4".

        Raises:
            SaescopeError: something else.
        """
        number, slash, n = text.partition("/")
        if not (slash and number.isdecimal() and n.isdecimal() and 1 <= int(number) <= int(n)):
            raise SaescopeError(f"--part {text}: write which of how many, for example 1/4 to 4/4.")
        return cls(int(number), int(n))

    @property
    def name(self) -> str:
        """For a folder."""
        return f"part-{self.number}-of-{self.n}"

    def members(self, members: Sequence[Config]) -> list[Config]:
        """Every n-th member.

        Raises:
            SaescopeError: there are fewer members than parts, or the model would read the text for each part.
        """
        if len(members) < self.n:
            raise SaescopeError(
                f"--part {self.number}/{self.n}: the config describes {len(members)} trainings; make no more parts than "
                "that."
            )
        if members[0].cache.mode == "stream" and members[0].corpus.needs_model:
            raise SaescopeError(
                "with cache.mode=stream the model would read the text once for each part; set cache.mode=disk."
            )
        return list(members[self.number - 1 :: self.n])
