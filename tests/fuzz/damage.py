"""Damage that files and values take: what a fuzz test draws."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", ".", "..", "/", "~", "nan", "inf", "-inf", "1e999", "true", "null", "0x10", "1_0", "٣", "5%",
                     "-5%", "1 epochs", "1e400 tokens", "2M tokens", "100 steps", "auto", "\x00", "a/b", "é" * 300]),
)
NUMBERS = st.one_of(
    st.integers(-3, 70), st.integers(), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(), st.sampled_from([0.0, -0.0, 1e-320, 1e308, 0.5, 1.0]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
"""What YAML and JSON can hold."""


@st.composite
def replaced(draw: st.DrawFn, plain: Any) -> Any:
    """A value of JSON types with one of its parts replaced, removed or joined by another."""
    if isinstance(plain, dict) and plain and draw(st.integers(0, 9)) > 0:
        key = draw(st.sampled_from(sorted(plain)))
        how = draw(st.sampled_from(["inside", "inside", "inside", "drop", "add"]))
        if how == "drop":
            return {k: v for k, v in plain.items() if k != key}
        if how == "add":
            return {**plain, draw(TEXTS): draw(VALUES)}
        return {**plain, key: draw(replaced(plain[key]))}
    if isinstance(plain, list) and plain and draw(st.booleans()):
        at = draw(st.integers(0, len(plain) - 1))
        return [*plain[:at], draw(replaced(plain[at])), *plain[at + 1 :]]
    return draw(VALUES)


@st.composite
def torn(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes cut short, with some overwritten, put in or taken out; or others altogether."""
    how = draw(st.sampled_from(["cut", "overwrite", "insert", "take", "other", "empty", "twice"]))
    if how == "empty" or not whole:
        return b""
    # the beginning is where headers are
    at = draw(st.one_of(st.integers(0, min(200, len(whole) - 1)), st.integers(0, len(whole) - 1)))
    some = draw(st.binary(min_size=1, max_size=8))
    made: dict[str, Callable[[], bytes]] = {
        "cut": lambda: whole[:at], "overwrite": lambda: whole[:at] + some + whole[at + len(some) :],
        "insert": lambda: whole[:at] + some + whole[at:], "take": lambda: whole[:at] + whole[at + len(some) :],
        "other": lambda: draw(st.binary(max_size=64)), "twice": lambda: whole + whole,
    }
    return made[how]()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes torn; of JSON also with one of its values replaced."""
    try:
        plain = json.loads(whole)
    except ValueError:
        lines = whole.splitlines()
        if not whole.startswith(b"{") or len(lines) < 2:
            return draw(torn(whole))
        at = draw(st.integers(0, len(lines) - 1))
        return b"\n".join([*lines[:at], draw(damaged(lines[at])), *lines[at + 1 :]])
    return draw(torn(whole)) if draw(st.integers(0, 3)) == 0 else json.dumps(draw(replaced(plain))).encode()
