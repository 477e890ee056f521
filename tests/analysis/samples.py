"""Features, examples and labels as an index gives them, made by hand."""

from dataclasses import replace
from typing import Any

import numpy as np

from analysis.index.types import Example, Feature, Group, Histogram, Neighbour, Token, TokenShare
from analysis.labels.names import Name
from analysis.render.feature import Card, Section

HOSTILE = (
    "<script>alert(1)</script>", "</bdi></div><img src=x onerror=alert(1)>", "\"' onmouseover=alert(1) x=\"", "&lt;b&gt;",
    "\x00", "\x1b[31mred", "\u202egnp.exe", "\u200b", "\u2066x\u2069", "\ufeff", "\udcff", "\ufffd", "e" + "\u0301" * 40,
    "\u0301", "x" * 100_000, "שלום", "\r\n", "\u2028", "-->", "]]>", "${alert(1)}", "javascript:alert(1)",
)
"""Texts that must come out as text."""


def feature(**fields: Any) -> Feature:
    """A feature with values 1 to 8, on both sides if `n_negative` is given."""
    edges = [1.0, 2.0, 4.0, 8.0, 16.0]
    signed = bool(fields.get("n_negative"))
    base = Feature(
        feature=7, n_active=30, n_rows=10_000, density=0.003, density_low=0.0021, density_high=0.00428, n_negative=0,
        n_contexts=25, max=7.5, min=-3.0 if signed else 0.5, mean=3.25, second_moment=14.0, std=1.85, skew=0.4,
        kurtosis=2.9, decoder_norm=1.25,
        histogram=Histogram(edges, [0, 20, 10, 0], [4, 2, 0, 0] if signed else [0] * 4),
        promoted=[Token(5, " import", 2.5), Token(6, "\n", 1.0)], suppressed=[Token(9, "<b>", -1.5)], dead=False,
    )
    return replace(base, **fields)


def dead() -> Feature:
    """A feature that never fires."""
    return feature(
        n_active=0, density=0.0, density_low=0.0, density_high=0.0004, max=0.0, min=0.0, mean=None, second_moment=None,
        std=None, skew=None, kurtosis=None, n_contexts=0, dead=True, histogram=Histogram([1.0, 2.0, 4.0], [0, 0], [0, 0]),
    )


def example(pieces: list[str], values: list[float], *, feature: int = 7, seq: int = 3, start: int = 10) -> Example:
    """A window with its peak at the largest absolute value."""
    peak = int(np.argmax(np.abs(values)))
    return Example(feature, seq, start + peak, start, start + len(pieces), pieces, values, values[peak])


def card(**fields: Any) -> Card:
    """A card with two groups and both kinds of neighbours."""
    one = example(["def", " import", "\n", " os"], [0.0, 7.5, 0.0, 1.25])
    sections = [Section("+", Group("top", 7.5, 7.5, 30), [one]), Section("+", Group("q3", 1.0, 2.0, 3), [one])]
    base = Card(
        feature(), sections, {"decoder": [Neighbour(12, 0.75)], "coactivation": [Neighbour(40, 0.2)]},
        names={12: Name("after seem"), 40: Name(None, (TokenShare("import", 0.61), TokenShare("from", 0.14)))},
        provenance={"model": "smollm2-135m"},
    )
    return replace(base, **fields)
