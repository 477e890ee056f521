"""Subject–verb agreement: the verb has the number of its subject, whatever noun stands between them.

    agreement-simple      The tall author                → is, was, has    ↔ The tall authors
    agreement-across-pp   The author near the houses     → is, was, has    ↔ The authors near the houses
    agreement-across-rc   The author who the boys like   → is, was, has    ↔ The authors who the boys like

As many clean prompts have a singular subject as a plural one, and as many distractors, within each, are singular as
plural, so that neither the mean over the examples nor the noun before the verb gives the number away.
"""

from random import Random

from analysis.circuits.tasks.builtin.template import Template, Words
from analysis.circuits.tasks.builtin.words import ADJECTIVES, PEOPLE, PLACES_AND_THINGS, PREPOSITIONS, TRANSITIVE
from analysis.circuits.tasks.task import Pair

VERBS = ((" is", " was", " has"), (" are", " were", " have"))
"""By the subject's number: 0 singular, 1 plural."""


def _agreeing(subject: tuple[str, ...], number: int, prompt: str) -> Pair:
    """A pair that differs in the number of the subject, at `{}`."""
    clean, corrupt = (prompt.format(subject[n]) for n in (number, 1 - number))
    return Pair(clean, corrupt, VERBS[number], VERBS[1 - number])


def _simple(random: Random, words: Words, case: int) -> Pair:
    (adjective,) = random.choice(words["adjectives"])
    return _agreeing(random.choice(words["people"]), case, f"The {adjective} {{}}")


def _across_pp(random: Random, words: Words, case: int) -> Pair:
    number, distractor = divmod(case, 2)
    (preposition,), noun = random.choice(words["prepositions"]), random.choice(words["things"])[distractor]
    return _agreeing(random.choice(words["people"]), number, f"The {{}} {preposition} the {noun}")


def _across_rc(random: Random, words: Words, case: int) -> Pair:
    number, distractor = divmod(case, 2)
    subject, other = random.sample(words["people"], 2)
    verb = random.choice(words["verbs"])[distractor]
    return _agreeing(subject, number, f"The {{}} who the {other[distractor]} {verb}")


TEMPLATES = (
    Template("agreement-simple", _simple, 2, {"people": PEOPLE, "adjectives": ADJECTIVES}),
    Template(
        "agreement-across-pp", _across_pp, 4, {"people": PEOPLE, "things": PLACES_AND_THINGS},
        {"prepositions": PREPOSITIONS},
    ),
    Template("agreement-across-rc", _across_rc, 4, {"people": PEOPLE}, {"verbs": TRANSITIVE}),
)
