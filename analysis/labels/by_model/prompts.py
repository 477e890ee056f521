"""Prompts for labelling and scoring features, and parsing of the answers.

To write a label, the model sees excerpts with active tokens marked and their values, as in Bills et al. (2023, Language
models can explain neurons in language models) and Paulo et al. (2410.13928, §3), and the tokens that the feature promotes.
To score one, it sees the label and held-out excerpts with one marked token each, and says which match the label: detection
(Paulo et al., §4.2) on the same examples that are used for rules.

Excerpts and answers are untrusted: all characters of an excerpt are made visible, and an answer is reduced to one short
line without control characters.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.labels.by_model.chat import Question
from analysis.render.text import plain

VERSION = 1
"""Version of the prompts."""
LONGEST = 200
"""Maximum length of a label in characters."""
MOST_VALUES = 8
"""Number of largest values listed per excerpt, plus ties."""
OPEN, CLOSE = "<<", ">>"


@dataclass(frozen=True)
class Excerpt:
    """A piece of text with the feature's strength at each token: 0 if inactive, else 1 to 10."""

    pieces: Sequence[str]
    strengths: Sequence[int]


def to_explain(excerpts: Sequence[Excerpt], promoted: Sequence[str]) -> Question:
    """The prompt that asks for a label."""
    shown = "\n".join(
        f"{i}. {marked(one.pieces, [s > 0 for s in one.strengths])}\n   values: {_values(one)}"
        for i, one in enumerate(excerpts, 1))
    tokens = ", ".join(map(_quoted, promoted))
    raised = f"\n\nThe tokens that it makes likelier as the next one: {tokens}" if promoted else ""
    return Question(
        "A language model holds a feature: a number that is zero at most tokens of a text and large at some. Find out what "
        "the feature stands for.\n\n"
        f"Below are excerpts in which it is active. The tokens where it is active stand between {OPEN} and {CLOSE}, and "
        "the largest values, from 1 (weak) to 10 (its strongest), follow each excerpt. ⏎ is a line break. The model reads "
        "from left to right, so a value depends on the marked token and on what stands before it; it may also tell what "
        f"comes next.\n\n{shown}{raised}\n\n"
        "In at most twelve words: what do the marked tokens, where they stand, have in common? It may be a word, a kind of "
        "word, a part of a sentence, a topic, or what follows. Be so specific that somebody who has only your words could "
        "tell the marked tokens from all others. Answer with one line that begins with LABEL:", begin="LABEL:", end="\n",
    )


def to_judge(label: str, excerpts: Sequence[tuple[Sequence[str], int]]) -> Question:
    """The prompt that asks which excerpts match a label.

    Args:
        label: a feature's label.
        excerpts: tokens of each excerpt and the index of the marked one.
    """
    shown = "\n".join(
        f"{i}. {marked(pieces, [at == j for j in range(len(pieces))])}" for i, (pieces, at) in enumerate(excerpts, 1))
    return Question(
        "A feature of a language model is active at some tokens and not at others. Somebody says that it stands for "
        "this:\n\n"
        f"   {label}\n\n"
        f"In each of these excerpts one token stands between {OPEN} and {CLOSE}. ⏎ is a line break.\n\n{shown}\n\n"
        "At which of the marked tokens, where they stand, would the feature be active, if that description is true? Answer "
        "with the numbers of these excerpts as a list, such as [2, 5], and with [] if it fits none of them.",
        begin="[", end="]",
    )


def marked(pieces: Sequence[str], marks: Sequence[bool]) -> str:
    """A text on one line with some tokens marked; the space before a token stays outside the marks.

    Marks that occur in the text itself are broken up, and so is `<|`, which starts special tokens in chat templates.
    """
    out = []
    for piece, mark in zip(pieces, marks, strict=True):
        text = plain(piece).replace(OPEN, "< <").replace(CLOSE, "> >").replace("<|", "< |") if piece else ""
        space = text[: len(text) - len(text.lstrip(" "))] if text.strip(" ") else ""
        out.append(f"{space}{OPEN}{text[len(space) :]}{CLOSE}" if mark else text)
    return "".join(out)


def label_of(answer: str) -> str | None:
    """Extract the label: the text after the last `LABEL:`, or the whole answer if it is one short line; else None."""
    answer = _without_thoughts(answer)[:20_000]
    found = re.findall(r"label\W{0,4}:[\s*]*(.*)", answer, re.IGNORECASE)
    if not found and len(answer.strip()) > LONGEST:
        return None
    lines = [line for line in map(_tidy, found or answer.splitlines()) if line]
    return lines[-1] if lines and (found or len(lines) == 1) else None


def said_of(answer: str, n: int) -> list[bool] | None:
    """Parse which of `n` excerpts an answer lists; None if it isn't a list of valid numbers."""
    answer = _without_thoughts(answer)
    lists = re.findall(r"\[([0-9,;\s]*)\]", answer[-20_000:])
    inside = lists[-1] if lists else answer
    if not re.fullmatch(r"[0-9,;\s]*", inside) or (not lists and not inside.strip()):
        return None
    # a ten-digit number can't be an excerpt's, and one with a million digits would be slow to parse
    numbers = {int(digits) if len(digits) < 10 else 0 for digits in re.findall("[0-9]+", inside)}
    if not numbers <= set(range(1, n + 1)):
        return None
    return [i in numbers for i in range(1, n + 1)]


def _without_thoughts(answer: str) -> str:
    """Strip the `<think>` section of reasoning models; empty if it doesn't end."""
    head, _, rest = answer.rpartition("</think>")
    text = rest if head else answer
    return "" if text.lstrip().startswith("<think>") else text


def _tidy(line: str) -> str:
    """Clean up a line: printable characters only, limited length, no surrounding quotes or asterisks."""
    text = "".join(" " if c.isspace() else c for c in line if c.isspace() or unicodedata.category(c)[0] != "C")
    text = " ".join(text.split()).lstrip("* ").rstrip("* .")
    for first, last in ('""', "''", "“”", "‘’", "``"):
        if len(text) > 1 and text[0] == first and text[-1] == last and not {first, last} & set(text[1:-1]):
            text = text[1:-1].strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"


def _values(one: Excerpt) -> str:
    found = [(piece, s) for piece, s in zip(one.pieces, one.strengths, strict=True) if s > 0 and piece]
    least = sorted(s for _, s in found)[-MOST_VALUES:][0] if found else 0
    return ", ".join(f"{_quoted(piece)} {s}" for piece, s in found if s >= least)


def _quoted(text: str) -> str:
    return f"`{plain(text.strip(' ') or text, limit=24)}`"
