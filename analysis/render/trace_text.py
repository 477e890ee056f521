"""A trace as text, with each step's parts indented below it."""

from typing import TYPE_CHECKING

from analysis.render.text import plain

if TYPE_CHECKING:
    from analysis.circuits.attribution.trace import Step


def trace_lines(step: "Step", indent: int = 0) -> list[str]:
    """Format a trace as lines.

    Args:
        step: the first step.
        indent: number of leading spaces.
    """
    space = " " * indent
    head = (
        f"{space}{plain(step.name)} = {step.value:.3g}   explained {step.explained:.0%}, errors {step.errors:.0%}, "
        f"constant {step.constant:.3g}"
    )
    out = [head]
    for part in step.parts:
        out.append(f"{space}  {part.amount:+.3g}  {' × '.join(plain(name) for name in part.names)}")
        for below in part.steps:
            out += trace_lines(below, indent + 6)
    return [*out, f"{space}  {step.rest:+.3g}  all others"]
