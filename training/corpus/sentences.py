"""Generate simple English sentences from word lists, in the present and past tense: text with subject–verb agreement.

A model's activations on a prompt such as "The keys near the cabinet" differ a lot from those on source code, and an SAE
reconstructs best what it was trained on. A document is one to three sentences,

    [determiner] [adjective] noun [of a place | that someone likes] verb …

each with a singular or a plural subject. The nouns are public so that a task can avoid them.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

N_DOCUMENTS = 40_000


def _words(text: str) -> list[str]:
    return text.split()


def _nouns(text: str) -> list[tuple[str, str]]:
    """(singular, plural) of nouns whose plural is regular, or given after a slash."""
    pairs = (word.partition("/") for word in text.split())
    return [(singular, plural or _with_s(singular)) for singular, _, plural in pairs]


def _with_s(word: str) -> str:
    """The plural of a noun, or the third person of a verb."""
    if word.endswith(("s", "x", "sh", "ch")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"


THINGS = _nouns(
    "apple bag basket bed bench bicycle blanket boat bottle bowl brush building button cake candle carpet castle circle "
    "cloud coat cookie curtain desk dress drum egg engine envelope fence flag fork fruit game gate gift glass glove "
    "guitar hammer hill idea island jacket jar kettle ladder leaf/leaves light line lock map mirror mountain nail needle "
    "painting paper pen pencil piano pillow pipe plate pocket problem question ring rock roof rope rule screen "
    "shelf/shelves shoe sign sock spoon stone street tent tool tower toy truck umbrella vase wheel wire word answer test "
    "message movie price rose seed star tail wing ticket tooth/teeth town village voice wave week yard zone shop"
)
BEINGS = _nouns(
    "animal ant baby baker bear bee brother butcher captain chicken chief clerk client coach cook cousin cow customer "
    "dancer daughter dentist director duck editor elephant expert father fox frog goat guest hero/heroes hunter insect "
    "lady leader lion member monkey mother mouse/mice musician neighbor owner pig poet prince rabbit rat reporter sailor "
    "sister snake son spider tiger tourist uncle visitor waiter wife/wives witness wolf/wolves woman/women man/men "
    "child/children person/people"
)
_PLACES = _words(
    "cabinet garden wall kitchen school church lake hotel station office house park forest market museum bank beach city "
    "farm field hall library river road room sea store"
)
_PREPOSITIONS = (
    "near", "behind", "beside", "by", "above", "under", "with", "from", "in front of", "next to", "across from",
    "on top of", "inside", "around", "of", "in",
)
_TRANSITIVE = _words(
    "like know see want love need help find watch follow admire remember avoid carry hold visit paint draw buy sell"
)
_INTRANSITIVE = _words("sleep wait smile fall move stop sit stand work run walk change grow shine break return")
_ADJECTIVES = _words(
    "old new red blue small large nice broken beautiful dirty clean famous empty full heavy expensive cheap strange happy "
    "sad tired angry strong weak busy quiet loud"
)
_STATES = (
    *_ADJECTIVES, "ready", "missing", "gone", "important", "very old", "on the table", "in the box", "made of wood",
    "from France", "not here", "here", "too small",
)
_WHEN = ("here", "today", "every day", "a lot", "again", "in the garden")
_DETERMINERS = (
    (*["The"] * 6, "This", "That", "A", "Every", "Our", "My", "His", "Her"),
    (*["The"] * 6, "These", "Those", "Some", "Many", "Two", "Our", "My", "Their"),
)


def sentences(seed: int, n: int = N_DOCUMENTS) -> Iterator[str]:
    """Generate `n` documents of one to three sentences; deterministic in the seed."""
    rng = random.Random(seed)
    for _ in range(n):
        yield " ".join(_sentence(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


@lru_cache(maxsize=1)
def sentences_identity() -> dict[str, Any]:
    """A hash of the output for seed 0."""
    return {"sha256": hashlib.sha256("\n".join(sentences(0)).encode()).hexdigest()}


def _sentence(rng: random.Random) -> str:
    plural = rng.random() < 0.5
    return f"{_subject(rng, plural)}{_modifier(rng)} {_predicate(rng, plural)}."


def _subject(rng: random.Random, plural: bool) -> str:
    noun, determiner = rng.choice(THINGS + BEINGS)[plural], rng.choice(_DETERMINERS[plural])
    phrase = f"{rng.choice(_ADJECTIVES)} {noun}" if rng.random() < 0.15 else noun
    return f"An {phrase}" if determiner == "A" and phrase[0] in "aeiou" else f"{determiner} {phrase}"


def _modifier(rng: random.Random) -> str:
    """Nothing, a prepositional phrase, or a relative clause."""
    kind = rng.random()
    if kind < 0.3:
        return ""
    if kind < 0.65:
        place = rng.choice(_PLACES) if kind < 0.5 else rng.choice(rng.choice(THINGS + BEINGS))
        return f" {rng.choice(_PREPOSITIONS)} the {place}"
    plural = rng.random() < 0.35
    being, verb = rng.choice(BEINGS)[plural], _agreeing(rng.choice(_TRANSITIVE), plural)
    return f" {rng.choice(('that', 'that', 'which'))} the {being} {verb}"


def _predicate(rng: random.Random, plural: bool) -> str:
    kind = rng.random()
    if kind < 0.45:
        be = rng.choice((("is", "is", "is", "was"), ("are", "are", "are", "were"))[plural])
        return f"{be} {rng.choice(_STATES)}"
    if kind < 0.55:
        return f"{('has', 'have')[plural]} {rng.choice(('the', 'no'))} {rng.choice(_ADJECTIVES)} {rng.choice(THINGS)[0]}"
    if kind < 0.75:
        return f"{_agreeing(rng.choice(_TRANSITIVE), plural)} the {rng.choice(rng.choice(THINGS + BEINGS))}"
    if kind < 0.9:
        return f"{_agreeing(rng.choice(_INTRANSITIVE), plural)} {rng.choice(_WHEN)}"
    return f"{('does', 'do')[plural]} not {rng.choice(_INTRANSITIVE)}"


def _agreeing(verb: str, plural: bool) -> str:
    return verb if plural else _with_s(verb)
