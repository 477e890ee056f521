"""A spurious attribute planted in real text: the gender of the person it mentions.

    intended   topic of the text: the standard library's networking modules, or those on language and numbers
    spurious   whether the person named before the text is a woman or a man

In biased texts the two labels agree, in balanced texts they are independent. Train and test texts come from different
modules and name different people. Modelled on Bias in Bios as used by SHIFT (Marks et al. 2403.19647, §5), but made from
text that every machine has.
"""

import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from analysis.circuits.shift.texts import Text

NETWORK = (
    "asyncio/", "http/", "urllib/", "email/", "smtplib.py", "ftplib.py", "imaplib.py", "poplib.py", "socket.py",
    "socketserver.py", "ssl.py", "xmlrpc/", "wsgiref/", "telnetlib.py", "nntplib.py", "selectors.py", "cgi.py",
    "webbrowser.py", "ipaddress.py", "mailbox.py",
)
LANGUAGE = (
    "ast.py", "dis.py", "tokenize.py", "inspect.py", "typing.py", "dataclasses.py", "fractions.py", "statistics.py",
    "random.py", "_pydecimal.py", "numbers.py", "functools.py", "collections/", "enum.py", "abc.py", "_pydatetime.py",
    "datetime.py", "calendar.py", "copy.py", "heapq.py", "bisect.py", "types.py", "pprint.py", "traceback.py", "ctypes/",
    "json/", "re/", "string.py", "textwrap.py", "difflib.py",
)
def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WOMEN = _words(
    "Mary Anna Emma Olivia Sophia Isabella Charlotte Amelia Emily Elizabeth Laura Julia Sarah Alice Grace Helen Lucy "
    "Rachel Hannah Claire Ruth Rose Martha Nancy Susan Karen Lisa Linda Barbara Jessica"
)
_MEN = _words(
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul Steven Andrew George "
    "Kenneth Kevin Brian Edward Peter Henry Adam Nathan Walter Frank Simon Oliver Jack"
)
_SENTENCES = (
    "{name} wrote this part, and {he} still keeps {his} notes on it.",
    "This was reviewed by {name}; {he} asked us to thank {his} team.",
    "Ask {name} about the following, as {he} knows it best.",
    "{name} found the last fault here, and {he} mended it in {his} free time.",
    "For {name}, who needed it for {his} work when {he} was ill.",
    "The idea is due to {name}, and so is {his} drawing of it.",
    "{name} says that {he} would do it again, but not in {his} old way.",
    "We owe this to {name} and to {his} patience.",
)
_PRONOUNS = {True: {"he": "she", "his": "her"}, False: {"he": "he", "his": "his"}}


@dataclass(frozen=True)
class Planted:
    """Data sets of one seed.

    Attributes:
        biased: the two labels always agree.
        balanced: same modules and people, four equal groups; used by skylines and the oracle.
        test: balanced, with other modules and people.
    """

    biased: list[Text]
    balanced: list[Text]
    test: list[Text]


def planted(n_train: int, n_test: int, seed: int, *, n_chars: int = 600) -> Planted:
    """Draw the data sets.

    Args:
        n_train: texts in the biased and in the balanced set.
        n_test: texts in the test set.
        seed: seed for excerpts, people and sentences.
        n_chars: maximum length of an excerpt.
    """
    rng = random.Random(seed)
    drawn = {intended: _split(rng, intended, n_chars) for intended in (False, True)}
    people = {woman: rng.sample(names, len(names)) for woman, names in ((True, _WOMEN), (False, _MEN))}

    def texts(n: int, part: int, biased: bool) -> list[Text]:
        named = {woman: names[:20] if part == 0 else names[20:] for woman, names in people.items()}
        found = []
        for i in range(n):
            intended = bool(i % 2)
            woman = intended if biased else bool(i // 2 % 2)
            found.append(_with_person(rng, rng.choice(drawn[intended][part]), intended, woman, named[woman]))
        return found

    return Planted(texts(n_train, 0, True), texts(n_train, 0, False), texts(n_test, 1, False))


def _split(rng: random.Random, intended: bool, n_chars: int) -> tuple[list[str], list[str]]:
    """Excerpts of three quarters of a class's modules, and of the remaining quarter."""
    by_module: dict[str, list[str]] = {}
    for module, text in _excerpts(NETWORK if intended else LANGUAGE, n_chars):
        by_module.setdefault(module, []).append(text)
    modules = rng.sample(sorted(by_module), len(by_module))
    first = len(modules) * 3 // 4
    halves = [[text for module in part for text in by_module[module]] for part in (modules[:first], modules[first:])]
    return halves[0], halves[1]


@lru_cache(maxsize=4)
def _excerpts(names: Sequence[str], n_chars: int) -> tuple[tuple[str, str], ...]:
    """(module, excerpt) pairs of all modules with these names or in these folders."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path for name in names if name.endswith("/") for path in (root / name).rglob("*.py")}
    paths |= {root / name for name in names if name.endswith(".py") and (root / name).is_file()}
    return tuple(
        (path.relative_to(root).as_posix(), text)
        for path in sorted(paths) for text in _cut(path.read_text(encoding="utf-8"), n_chars)
    )


def _cut(source: str, n_chars: int) -> Iterator[str]:
    text = ""
    for line in source.splitlines(keepends=True):
        text += line
        if len(text) >= n_chars:
            yield text[:n_chars]
            text = ""


def _with_person(rng: random.Random, excerpt: str, intended: bool, woman: bool, names: Sequence[str]) -> Text:
    words = {"name": rng.choice(names), **_PRONOUNS[woman]}
    sentence, spans, rest = "", [], rng.choice(_SENTENCES)
    while "{" in rest:
        before, _, rest = rest.partition("{")
        key, _, rest = rest.partition("}")
        sentence += before
        spans.append((len(sentence), len(sentence) + len(words[key])))
        sentence += words[key]
    return Text(f"{sentence}{rest}\n{excerpt}", intended, woman, tuple(spans))
