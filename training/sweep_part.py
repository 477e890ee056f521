"""Split a sweep over several processes: one per device, or independent jobs.

The processes fill one cache together, so that the language model reads each text once; then each trains its own members.
The result for an SAE does not depend on how the sweep is split.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sae.errors import SaescopeError
from training.config.schema import Config


class SweepPart(NamedTuple):
    """Part `number` of `n`, counted from 1."""

    number: int
    n: int

    @classmethod
    def read(cls, text: str) -> "SweepPart":
        """Parse "2/4".

        Raises:
            SaescopeError: any other form.
        """
        number, slash, n = text.partition("/")
        if not (slash and number.isdecimal() and n.isdecimal() and 1 <= int(number) <= int(n)):
            raise SaescopeError(f"--part {text}: must be I/N with I from 1 to N, for example 1/4.")
        return cls(int(number), int(n))

    @property
    def name(self) -> str:
        """The name of the part's checkpoint folder."""
        return f"part-{self.number}-of-{self.n}"

    def members(self, members: Sequence[Config]) -> list[Config]:
        """Every n-th member, from this part's number.

        Raises:
            SaescopeError: fewer members than parts, or streamed activations, which every part would recompute.
        """
        if len(members) < self.n:
            raise SaescopeError(
                f"--part {self.number}/{self.n}: the sweep has {len(members)} members, so it can be split into at most "
                f"that many parts."
            )
        if members[0].cache.mode == "stream" and members[0].corpus.needs_model:
            raise SaescopeError(
                "--part with cache.mode=stream would run the model once for each part; set cache.mode=disk."
            )
        return list(members[self.number - 1 :: self.n])
