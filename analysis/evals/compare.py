"""Which of two runs is better, at what, by how much, and is that more than another seed would change?

Each side is a run with the other seeds of its training that are there. A figure of A and B is compared on the same rows,
pair by pair (`common.intervals`). What a comparison can say of a figure:

    A or B better     the interval of the difference leaves zero out, the noise of two seeds or more on each side counted
    differs           the same of a figure that does not judge; or one side has one seed: another might come out otherwise
    not separable     it holds zero; with the number of seeds on each side that would separate them, if any number would
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
    """One figure of two sides."""

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
        """In words; of B against A."""
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
    """The runs of each side: the one given and the other seeds of its training, which must be comparable.

    Raises:
        SaescopeError: no run, or runs of different sites, models or corpora.
    """
    first, second = open_trained(a), open_trained(b)
    check_comparable(first, second)
    return (
        [first.folder, *other_seeds(first, root_of(first))], [second.folder, *other_seeds(second, root_of(second))],
    )


def check_comparable(first: TrainedSAE, second: TrainedSAE) -> None:
    """Refuse runs that are not over the same held-out rows.

    Raises:
        SaescopeError: which part of them differs.
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
                f"{first.folder} and {second.folder} were not made for the same {name} ({_short(mine)} and "
                f"{_short(theirs)}), so no figure of the one compares with the other's; give runs of one {name}."
            )


def compared(a: Sequence[Mapping[str, EvalResult]], b: Sequence[Mapping[str, EvalResult]]) -> list[Compared]:
    """Every figure that both sides have.

    Args:
        a, b: the results of each seed, by evaluation.
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
    """A figure of a run less that of each of its controls, paired."""
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
    """Whether a figure of a run is beyond that of every control; None where a control is lacking or nothing judges it.

    Documents are counted, and not what another seed of the run or of a control would change.
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
