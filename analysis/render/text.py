"""Display untrusted text safely: escaped, direction-isolated, with invisible characters made visible.

Tokens come from web text: they may contain markup, control characters, bidi marks or partial characters. Displayed, they
must not be executed by a browser, reorder their neighbours or disappear.
"""

import json
import unicodedata
from collections.abc import Iterator
from html import escape

LIMIT = 64
"""Maximum characters shown of a token; longer ones are cut, with the number of remaining characters."""

_NAMED = {"\n": "⏎", "\t": "⇥", "\u00a0": "⍽", "\x7f": "␡"}
_ODD = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
_STACKED = 3
"""Maximum combining marks drawn on a letter; more would cover the lines around it."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# characters without a visible glyph
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\uffa0")


def plain(text: str, *, spaces: bool = False, limit: int | None = LIMIT) -> str:
    """Plain text for an attribute, alt text or terminal: one line, every character visible.

    Args:
        text: any text, including lone surrogates.
        spaces: show spaces as `␣`, where they would be overlooked.
        limit: maximum characters, None for all.
    """
    if text and not spaces and text.isascii() and text.isprintable() and (limit is None or len(text) <= limit):
        return text
    return "".join(mark for mark, _ in _marks(text, spaces, limit))


def shown(text: str, *, spaces: bool = False, limit: int | None = LIMIT) -> str:
    """The same as HTML, isolated from the surrounding text direction; replaced characters are marked."""
    return f"<bdi>{inner(text, spaces=spaces, limit=limit)}</bdi>"


def inner(text: str, *, spaces: bool = False, limit: int | None = LIMIT, breaks: bool = False) -> str:
    """The content of `shown`, for a `<bdi>` with its own attributes.

    With `breaks`, newlines are kept, so that they are copied as such; the style sheet draws `⏎` before them.
    """
    if not spaces and text.isascii() and text.isprintable() and (limit is None or len(text) <= limit):
        return escape(text, quote=False)
    return "".join(_marked(mark, kind, breaks) for mark, kind in _marks(text, spaces, limit))


def attribute(text: str, *, spaces: bool = True, limit: int | None = LIMIT) -> str:
    """The same as an HTML attribute value, without quotes."""
    return escape(plain(text, spaces=spaces, limit=limit), quote=True)


def cell(text: str) -> str:
    """A CSV cell: a JSON string, which round-trips exactly and which spreadsheets don't take for a formula (CSV
    injection), a number or a missing value. Invisible characters are escaped.
    """
    escaped = (c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(text, ensure_ascii=False))
    return "".join(escaped)


def number(value: float | None) -> str:
    """Three significant digits, proper minus sign, thousands separators; a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 999.5 else f"{size:#.3g}".rstrip(".") if size else "0"
    return f"−{text}" if value < 0 else text


def short(value: float) -> str:
    """A round value, such as a tick's, without trailing zeros; very small ones as powers of ten."""
    if 0 < abs(value) < 1e-4:
        digits, power = f"{value:.2e}".split("e")
        times = "" if abs(float(digits)) == 1 else f"{abs(float(digits)):g}·"
        return f"{'−' if value < 0 else ''}{times}10{str(int(power)).translate(_RAISED)}"
    return number(value) if abs(value) >= 1000 else f"{value:g}".replace("-", "−")


def count(n: int, unit: str) -> str:
    """`1 token`, `1,234 tokens`."""
    return f"{n:,} {unit}{'' if n == 1 else 's'}"


def _marked(mark: str, kind: str, breaks: bool) -> str:
    if kind == "newline":
        return '<span class="sx-br">\n</span>' if breaks else '<span class="sx-nl">⏎</span>'
    if kind == "space":
        return '<span class="sx-quiet">␣</span>'
    return f'<span class="sx-odd">{escape(mark)}</span>' if kind else escape(mark, quote=False)


def _marks(text: str, spaces: bool, limit: int | None) -> Iterator[tuple[str, str]]:
    """Pieces to show, each with its kind of replacement ("" for unchanged text)."""
    cut = text if limit is None else text[:limit]
    n_stacked = 0
    for i, char in enumerate(cut):
        n_stacked = n_stacked + 1 if unicodedata.combining(char) else 0
        yield _mark(char, cut[i - 1] if i else "", spaces, stacked=n_stacked > _STACKED)
    if len(cut) < len(text):
        yield f"… {count(len(text) - len(cut), 'character')} more", "cut"
    if not text:
        yield "⟨empty⟩", "odd"


def _mark(char: str, previous: str, spaces: bool, *, stacked: bool) -> tuple[str, str]:
    if char == " ":
        return ("␣", "space") if spaces else (" ", "")
    if char == "\n":
        return _NAMED[char], "newline"
    if char in _NAMED:
        return _NAMED[char], "odd"
    if char < " ":
        return chr(0x2400 + ord(char)), "odd"
    category = unicodedata.category(char)
    if category in _ODD or char in _BLANK or stacked:
        return f"⟨{ord(char):04X}⟩", "odd"
    if category in ("Mn", "Me", "Mc") and (not previous or previous in " \n\t"):
        return f"◌{char}", ""  # a combining mark without a base would attach to the neighbouring token
    return char, ""
