"""Compare two runs metric by metric: which is better, by how much, and beyond seed noise?

Each side is a run plus the available other seeds of the same training. Metrics are compared on the same rows, paired
(`common.intervals`). Verdicts:

    A or B better     the interval of the difference excludes zero, with seed noise from at least two seeds per side
    differs           the same for a metric without a better direction; or a side has one seed, so seed noise is unknown
    not separable     the interval includes zero; gives the number of seeds per side that would separate them, if any would
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.evals.common.intervals import Difference, difference
from analysis.evals.common.result import EvalResult, Metric, Units
from analysis.evals.common.seeds import other_seeds
from analysis.evals.controls.trained import root_of
from analysis.trained import TrainedSAE, open_trained
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Compared:
    """One metric compared between two sides."""

    eval: str
    group: str
    name: str
    a: float
    b: float
    """Means over seeds."""
    difference: Difference
    unit: str
    direction: str
    formula: str

    @property
    def verdict(self) -> str:
        """The verdict in words, for B against A."""
        found = self.difference
        if found.low is None:
            return "no interval"
        if not found.separable:
            return _not_separable(found)
        if self.direction == "none" or not found.beyond_seeds:
            return "differs" if found.beyond_seeds else "differs (one seed)"
        return "B better" if (found.value > 0) == (self.direction == "higher") else "A better"


def _not_separable(found: Difference) -> str:
    if found.error_seeds is None:
        return f"not separable at {found.n_units} documents, {min(found.n_seeds)} seed"
    seeds = "" if found.seeds_needed is None else f"; about {found.seeds_needed} seeds each would"
    return f"not separable at {min(found.n_seeds)} seeds{seeds}"


def sides(a: str | Path, b: str | Path) -> tuple[list[Path], list[Path]]:
    """Runs of each side: the given one and the other seeds of its training. Checks that the sides are comparable.

    Raises:
        SaescopeError: not a run, or runs with different sites, models or corpora.
    """
    first, second = open_trained(a), open_trained(b)
    check_comparable(first, second)
    return (
        [first.folder, *other_seeds(first, root_of(first))], [second.folder, *other_seeds(second, root_of(second))],
    )


def check_comparable(first: TrainedSAE, second: TrainedSAE) -> None:
    """Check that two runs have the same held-out rows.

    Raises:
        SaescopeError: site, model or corpus differ.
    """
    facts = [one.sae.provenance for one in (first, second)]
    parts = {
        "site": [fact.get("site") for fact in facts],
        "model": [(fact.get("made_from") or {}).get("model") for fact in facts],
        "corpus": [(fact.get("config") or {}).get("corpus") for fact in facts],
    }
    for name, (mine, theirs) in parts.items():
        if mine != theirs:
            raise SaescopeError(
                f"{first.folder} and {second.folder} have different {name} settings ({_short(mine)} and "
                f"{_short(theirs)}), so their metrics can't be compared; give runs with the same {name}."
            )


def compared(a: Sequence[Mapping[str, EvalResult]], b: Sequence[Mapping[str, EvalResult]]) -> list[Compared]:
    """Compare every metric that both sides have.

    Args:
        a, b: results of each seed, by evaluation.
    """
    out = []
    for name in [name for name in a[0] if all(name in one for one in (*a, *b))]:
        results = [[one[name] for one in side] for side in (a, b)]
        for group, metrics in results[0][0].found.metrics.items():
            for metric in metrics:
                found = _one(results, group, metric)
                if found is not None:
                    out.append(found)
    return out


def against_controls(found: EvalResult, group: str, name: str) -> dict[str, Difference]:
    """Paired difference of a run's metric from that of each of its controls."""
    mine = found.metric(group, name)
    out: dict[str, Difference] = {}
    for control, theirs in found.controls.items():
        other = theirs.metrics.get(group, {}).get(name)
        if mine is None or other is None:
            continue
        gap = difference([other], [mine], _n_rows(found.found.units, mine))
        if gap is not None:
            out[control] = gap
    return out


def better_than_nothing(found: EvalResult, group: str, name: str) -> bool | None:
    """Whether a run's metric beats every control; None if a control is missing or the metric has no better direction.

    Skips controls for which the metric is undefined. Accounts for document noise only, not for seed noise of the run or of
    the controls.
    """
    mine = found.metric(group, name)
    gaps = against_controls(found, group, name)
    if found.lacking or mine is None or mine.direction == "none" or not gaps:
        return None
    if any(gap.low is None for gap in gaps.values()):
        return None
    sign = 1 if mine.direction == "higher" else -1
    return all(gap.separable and sign * gap.value > 0 for gap in gaps.values())


def _one(results: Sequence[Sequence[EvalResult]], group: str, name: str) -> Compared | None:
    metrics: list[list[Metric]] = []
    for side in results:
        found = [one.metric(group, name) for one in side]
        if any(one is None or one.value is None for one in found):
            return None
        metrics.append([one for one in found if one is not None])
    first = metrics[0][0]
    if any(one.formula != first.formula for side in metrics for one in side):
        return None
    units = [one.found.units.get(first.of) for side in results for one in side]
    same = all(_same(units[0], other) for other in units)
    gap = difference(metrics[0], metrics[1], _n_rows(results[0][0].found.units, first) if same else None)
    if gap is None:
        return None
    means = [float(np.mean([one.value for one in side if one.value is not None])) for side in metrics]
    return Compared(
        results[0][0].eval, group, name, means[0], means[1], gap, first.unit, first.direction, first.formula)


def _n_rows(units: Mapping[str, Units], metric: Metric) -> np.ndarray | None:
    found = units.get(metric.of)
    return None if found is None else found.n_rows


def _same(a: Units | None, b: Units | None) -> bool:
    return a is not None and b is not None and a.kind == b.kind and np.array_equal(a.id, b.id)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."
