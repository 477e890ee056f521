"""A feature as text for a terminal: a text version of its dashboard page.

Activations are background colours: blue for positive values, orange and underlined for negative ones, so that the sign
doesn't depend on hue alone; the peak is bold. Without colours the peak is in ⟦ ⟧. Tokens are untrusted: control characters
never reach the terminal.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.style import Style
from rich.table import Table
from rich.text import Text

from analysis.index.types import Example, Feature, Histogram, Neighbour, Token
from analysis.render.feature import LOGITS
from analysis.render.text import number, plain

if TYPE_CHECKING:
    from analysis.index import Index

POSITIVE, NEGATIVE = (0, 114, 178), (213, 94, 0)
"""Blue and vermilion of Okabe and Ito's colour-blind-safe palette."""
BARS = " ▁▂▃▄▅▆▇█"
GROUPS = ("top", "q10", "q5", "q1", "near")
TITLES = {"top": "strongest", "q10": "strongest tenth", "q5": "fifth tenth", "q1": "weakest tenth",
          "random": "random", "near": "near misses: inactive"}


def show(index: "Index", i: int, *, console: Console, n: int = 5, groups: Sequence[str] = GROUPS) -> None:
    """Print a feature.

    Args:
        index: the index.
        i: the feature.
        console: the console to print to.
        n: examples per group.
        groups: names of groups, as in `Index.groups`.

    Raises:
        SaescopeError: there is no such feature.
    """
    feature = index.feature(i)
    if index.stale is not None:
        console.print(Text(f"stale: {index.stale}", style="yellow"))
    console.print(header(feature, index.run.name, index.name))
    if feature.dead:
        console.print("Never active in this index.")
    for side in index.sides if not feature.dead else ():
        if len(index.sides) > 1:
            console.print(Text(f"\nside {side}", style="bold"))
        first, second = (feature.promoted, feature.suppressed)[:: 1 if side == "+" else -1]
        if first or second:
            console.print(Lines(Text(LOGITS, style="dim"), tokens("promotes  ", first), tokens("suppresses", second)))
        population = {group.name: group for group in index.groups(i, side)}
        scale = max(abs(feature.max), abs(feature.min))
        for name in groups:
            found = index.examples(i, name, side, n)
            if found:
                group = population[name]
                bounds = "" if name == "near" else f", {number(group.low)} to {number(group.high)}"
                console.print(Text(f"\n{TITLES.get(name, name)} ({group.population:,} tokens{bounds})", style="bold"))
                for example in found:
                    console.print(line(example, scale, colours=console.color_system is not None), soft_wrap=False)
    console.print(neighbours("\nneighbours by decoder  ", index.neighbours(i)[:8]))
    console.print(neighbours("active together        ", index.neighbours(i, "coactivation")[:8]))


def header(feature: Feature, run: str, index: str) -> RenderableType:
    """Number, density with its interval, moments, histogram."""
    table = Table.grid(padding=(0, 2))
    low, high = f"{feature.density_low:.3%}", f"{feature.density_high:.3%}"
    table.add_row("density", f"{feature.n_active:,} of {feature.n_rows:,} tokens, {feature.density:.3%} [{low}, {high}], "
                             f"in {feature.n_contexts:,} contexts")
    span = f"max {number(feature.max)}" + (f", min {number(feature.min)}" if feature.n_negative else "")
    table.add_row("values", f"{span}, mean {number(feature.mean)}, std {number(feature.std)}, skew {number(feature.skew)}, "
                            f"excess kurtosis {number(feature.kurtosis)}")
    if feature.decoder_norm is not None:
        table.add_row("decoder", f"norm {number(feature.decoder_norm)} before saving")
    for sign, counts in (("+", feature.histogram.counts_pos), ("−", feature.histogram.counts_neg)):
        if any(counts):
            table.add_row(f"values {sign}", bars(feature.histogram, counts))
    return Lines(Text(f"feature {feature.feature} of {plain(run)}, index {plain(index)}", style="bold"), table)


def bars(histogram: Histogram, counts: Sequence[int]) -> Text:
    """A histogram on one line, from its first to its last non-empty bin."""
    filled = [j for j, n in enumerate(counts) if n]
    first, last = filled[0], filled[-1]
    most = max(counts)
    drawn = "".join(BARS[-(-n * (len(BARS) - 1) // most)] for n in counts[first : last + 1])
    return Text(f"{number(histogram.edges[first])} {drawn} {number(histogram.edges[last + 1])}  (log scale)")


def tokens(title: str, found: Sequence[Token]) -> Text:
    """Tokens with their logits."""
    text = Text(f"{title}  ", style="dim")
    for token in found:
        text.append(plain(token.text, spaces=True), style="not dim bold").append(f" {token.value:+.1f}  ", style="not dim")
    return text


def neighbours(title: str, found: Sequence[Neighbour]) -> Text:
    """Features with their scores."""
    return Text(title, style="dim").append("  ".join(f"{n.feature} ({n.score:.2f})" for n in found) or "none", "not dim")


def line(example: Example, scale: float, *, colours: bool) -> Text:
    """An example on one line: the peak's value, then the text."""
    text = Text(f"{number(example.value):>8}  ", no_wrap=True, overflow="ellipsis")
    whole = example.values[:]
    for i in range(len(whole) - 1, 0, -1):
        # a token without text is part of the previous character
        if not example.pieces[i] and abs(whole[i]) > abs(whole[i - 1]):
            whole[i - 1] = whole[i]
    peak = example.position - example.start
    while peak > 0 and not example.pieces[peak]:
        peak -= 1
    for i, (piece, value) in enumerate(zip(example.pieces, whole, strict=True)):
        if not piece:
            continue
        mark = plain(piece) if piece.strip(" ") or not value else plain(piece, spaces=True)
        if i == peak and not colours:
            mark = f"⟦{mark}⟧"
        text.append(mark, style=style(value, scale, bold=i == peak))
    return text


def style(value: float, scale: float, *, bold: bool) -> Style:
    """Background by magnitude; underline for negative values."""
    if not value or not scale:
        return Style(bold=bold)
    share = 0.25 + 0.75 * min(1.0, abs(value) / scale)
    colour = POSITIVE if value > 0 else NEGATIVE
    background = "#" + "".join(f"{int(255 + (c - 255) * share):02x}" for c in colour)
    return Style(color="#ffffff" if share > 0.6 else "#000000", bgcolor=background, bold=bold, underline=value < 0)
