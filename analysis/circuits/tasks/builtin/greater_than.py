"""Greater-than (Hanna et al. 2305.00586): an event ends in a later year than it began.

    The war began in the year 1745 and ended in the year 17 → later than 45   ↔   … in the year 1703 …

An answer is a single token. If single digits are tokens, it is the decade's digit: 5 to 9 are right, 0 to 3 wrong, and 4
is neither. If two digits are also a token, 46 to 99 are right and 00 to 44 wrong. The counterfactual year is in the first
decade, so that nearly every answer is right.
"""

from random import Random

from analysis.circuits.tasks.builtin.template import Template, Words
from analysis.circuits.tasks.builtin.words import LASTING
from analysis.circuits.tasks.task import Pair

CENTURIES = (11, 12, 13, 14, 15, 16, 17, 18)
DECADES = (2, 3, 4, 5, 6, 7)
"""Decades of the clean year, with decades before and after them."""


def later_and_earlier(year: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One- and two-digit strings all of whose two-digit completions are later than `year`, and those earlier."""
    ends = [f"{n:02d}" for n in range(100)]
    starts = [str(n) for n in range(10)]
    completed = {start: [end for end in ends if end.startswith(start)] for start in starts + ends}
    later = [start for start, all_ends in completed.items() if all(int(end) > year for end in all_ends)]
    earlier = [start for start, all_ends in completed.items() if all(int(end) < year for end in all_ends)]
    return tuple(later), tuple(earlier)


def _pair(random: Random, words: Words, case: int) -> Pair:
    (noun,), century = random.choice(words["lasting"]), random.choice(CENTURIES)
    year, early = 10 * DECADES[case] + random.randrange(10), random.randrange(1, 10)
    clean, corrupt = (
        f"The {noun} began in the year {century}{n:02d} and ended in the year {century}" for n in (year, early)
    )
    return Pair(clean, corrupt, *later_and_earlier(year))


TEMPLATES = (
    Template("greater-than", _pair, len(DECADES), {"lasting": LASTING}, metric="probability_difference"),
)
