"""Indirect object identification (Wang et al. 2211.00593): one of two people gives something; predict the other one.

    When Mary and John went to the store, John gave a drink to → Mary   ↔   …, Mary gave a drink to → John

The giver is named second in half of the prompts (ABBA) and first in the others (BABA).
"""

from random import Random

from analysis.circuits.tasks.builtin.template import Template, Words
from analysis.circuits.tasks.builtin.words import MEETING_PLACES, NAMES, PRESENTS
from analysis.circuits.tasks.task import Pair

FRAMES = (
    "When {} and {} went to the {}, {} gave a {} to", "After {} and {} came to the {}, {} handed a {} to",
    "While {} and {} stayed at the {}, {} passed a {} to",
)


def _pair(random: Random, words: Words, case: int) -> Pair:
    (receiver,), (giver,) = random.sample(words["names"], 2)
    first, second = (receiver, giver) if case == 0 else (giver, receiver)
    (place,), (present,) = random.choice(words["places"]), random.choice(words["presents"])
    frame = random.choice(FRAMES)
    clean, corrupt = (frame.format(first, second, place, name, present) for name in (giver, receiver))
    return Pair(clean, corrupt, (f" {receiver}",), (f" {giver}",))


TEMPLATES = (
    Template("ioi", _pair, 2, {"names": NAMES, "places": MEETING_PLACES, "presents": PRESENTS}),
)
