"""Greater-than (Hanna et al. 2305.00586): what began in a year ended in a later one.

    The war began in the year 1745 and ended in the year 17 → later than 45   ↔   … in the year 1703 …

An answer is one token. Where digits are tokens it is the decade's digit: right are 5 to 9, wrong 0 to 3, and 4 is
neither. Where two digits are a token too, right are 46 to 99 and wrong 00 to 44. The counterfactual year lies in the
first decade, after which nearly every answer is right.
"""

from random import Random

from analysis.circuits.tasks.builtin.template import Template, Words
from analysis.circuits.tasks.builtin.words import LASTING
from analysis.circuits.tasks.task import Pair

CENTURIES = (11, 12, 13, 14, 15, 16, 17, 18)
DECADES = (2, 3, 4, 5, 6, 7)
"""In which the clean year lies, so that there are decades before and after it."""


def later_and_earlier(year: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One or two digits all of whose completions to two digits are above a year of the century; and all below."""
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
