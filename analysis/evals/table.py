"""Evaluations as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis.evals.common.result import EvalResult, Metric
from analysis.evals.compare import Compared, better_than_nothing

ARROWS = {"higher": "↑", "lower": "↓", "none": " "}
SHORT = {"channels": "chan", "frozen-decoder": "fr dec", "frozen-encoder": "fr enc", "random-model": "rnd m"}


class Table(NamedTuple):
    """A title, a header, and rows with the same number of cells."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def of_run(found: EvalResult) -> Table:
    """All metrics of one evaluation of a run, next to its controls, and whether they beat all of them."""
    controls, references = list(found.controls), list(found.references)
    header = ("", "", "95 %", *(SHORT.get(name, name) for name in (*controls, *references)), "beyond")
    rows = []
    for group, metrics in found.found.metrics.items():
        for name, metric in metrics.items():
            others = [found.controls[control].metrics.get(group, {}).get(name) for control in controls]
            known = [found.references[one].get(group, {}).get(name) for one in references]
            beyond = {True: "yes", False: "no", None: "–"}[better_than_nothing(found, group, name)]
            cells = [value(metric), interval(metric), *(value(one) for one in (*others, *known)), beyond]
            rows.append((label(group, name, metric), *cells))
    return Table(f"{found.run}: {found.eval}, {found.title}", header, rows)


def of_runs(results: Mapping[str, Mapping[str, EvalResult]]) -> list[Table]:
    """One table per evaluation, with one column per run.

    Args:
        results: results by run and evaluation.
    """
    tables = []
    for name in dict.fromkeys(name for found in results.values() for name in found):
        have = {run: found[name] for run, found in results.items() if name in found}
        first = next(iter(have.values()))
        rows = [
            (label(group, metric, one), *(value(found.metric(group, metric)) for found in have.values()))
            for group, metrics in first.found.metrics.items() for metric, one in metrics.items()
        ]
        tables.append(Table(f"{name}: {first.title}", ("", *have), rows))
    return tables


def of_comparison(found: Sequence[Compared], a: str, b: str) -> Table:
    """Metrics of two sides, their difference, and the verdict."""
    rows: list[tuple[str, ...]] = [
        (f"{one.eval} {one.group}.{one.name} {ARROWS[one.direction]}", number(one.a), number(one.b),
         number(one.difference.value, signed=True), _bounds(one.difference.low, one.difference.high), one.verdict)
        for one in found
    ]
    return Table(f"A = {a}, B = {b}", ("", "A", "B", "B − A", "95 % interval", ""), rows)


def label(group: str, name: str, metric: Metric) -> str:
    """Name of a metric, with an arrow in the better direction."""
    return f"{group}.{name} {ARROWS[metric.direction]}"


def value(metric: Metric | None) -> str:
    """A metric's value."""
    return "–" if metric is None or metric.value is None else number(metric.value)


def interval(metric: Metric) -> str:
    """A metric's interval: ± half-width if it is symmetric, else both bounds."""
    if metric.value is None or metric.low is None or metric.high is None:
        return "–"
    below, above = metric.value - metric.low, metric.high - metric.value
    even = abs(above - below) <= 1e-6 * (abs(above) + abs(below))
    return f"± {number(above)}" if even else _bounds(metric.low, metric.high)


def number(x: float, *, signed: bool = False) -> str:
    """Format a number: three decimals for small numbers, fewer for large ones."""
    digits = 3 if abs(x) < 10 else 1 if abs(x) < 1000 else 0
    text = f"{x:{'+' if signed else ''},.{digits}f}"
    return f"{x:{'+' if signed else ''}.2g}" if 0 < abs(x) < 0.001 else text


def _bounds(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"
