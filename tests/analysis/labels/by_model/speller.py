"""A judge that goes by the spelling of tokens: what it says of a feature can be told beforehand."""

import re

LINE = re.compile(r"^\d+\. (.*)$", re.MULTILINE)
JUDGING = "   (.*)\n\nIn each of these"


def speller(prompt: str) -> str:
    """Labels a feature by the token that is marked most often, and judges by whether the marked token is the label."""
    marked = [re.findall(r"<<(.*?)>>", line) for line in LINE.findall(prompt)]
    label = re.search(JUDGING, prompt)
    if label is None:
        words = [word.casefold() for line in marked for word in line]
        return f"Let me see.\nLABEL: spelt {max(sorted(set(words)), key=words.count)}"
    return str([i for i, line in enumerate(marked, 1) if fits(label[1], line[0])])


def fits(label: str, token: str) -> bool:
    return token.strip().casefold() == label.removeprefix("spelt").removesuffix(" (negative side)").strip()
