"""Subject–verb agreement: the verb agrees in number with its subject, not with the noun in between.

    agreement-simple      We think that the tall author              → is, was, has   ↔   … the tall authors
    agreement-across-pp   We think that the author near the houses   → is, was, has   ↔   … the authors near the houses
    agreement-across-rc   We think that the author who the boys like → is, was, has   ↔   … the authors who the boys like

The first words help small models, which then expect a verb after the noun phrase (SmolLM2-135M: right in 98 of 100
held-out pairs across a phrase, against 78 without them). Singular and plural are balanced among subjects, and among
distractors for each, so neither the mean over examples nor the noun before the verb reveals the number.
"""

from random import Random

from analysis.circuits.tasks.builtin.template import Template, Words
from analysis.circuits.tasks.builtin.words import ADJECTIVES, PEOPLE, PLACES_AND_THINGS, PREPOSITIONS, TRANSITIVE
from analysis.circuits.tasks.task import Pair

BEGIN = "We think that the"
VERBS = ((" is", " was", " has"), (" are", " were", " have"))
"""Verbs by the subject's number: 0 singular, 1 plural."""


def _agreeing(subject: tuple[str, ...], number: int, prompt: str) -> Pair:
    """A pair that differs in the number of the subject, which replaces `{}`."""
    clean, corrupt = (prompt.format(subject[n]) for n in (number, 1 - number))
    return Pair(clean, corrupt, VERBS[number], VERBS[1 - number])


def _simple(random: Random, words: Words, case: int) -> Pair:
    (adjective,) = random.choice(words["adjectives"])
    return _agreeing(random.choice(words["people"]), case, f"{BEGIN} {adjective} {{}}")


def _across_pp(random: Random, words: Words, case: int) -> Pair:
    number, distractor = divmod(case, 2)
    (preposition,), noun = random.choice(words["prepositions"]), random.choice(words["things"])[distractor]
    return _agreeing(random.choice(words["people"]), number, f"{BEGIN} {{}} {preposition} the {noun}")


def _across_rc(random: Random, words: Words, case: int) -> Pair:
    number, distractor = divmod(case, 2)
    subject, other = random.sample(words["people"], 2)
    verb = random.choice(words["verbs"])[distractor]
    return _agreeing(subject, number, f"{BEGIN} {{}} who the {other[distractor]} {verb}")


TEMPLATES = (
    Template("agreement-simple", _simple, 2, {"people": PEOPLE, "adjectives": ADJECTIVES}),
    Template(
        "agreement-across-pp", _across_pp, 4, {"people": PEOPLE, "things": PLACES_AND_THINGS},
        {"prepositions": PREPOSITIONS},
    ),
    Template("agreement-across-rc", _across_rc, 4, {"people": PEOPLE}, {"verbs": TRANSITIVE}),
)
