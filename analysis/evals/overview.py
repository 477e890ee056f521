"""One table of many runs: metrics of their evaluations, and the held-out metrics from the end of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import runs
from analysis.evals.common.result import EvalResult, Metric, Metrics, read, results
from analysis.runs import Run
from sae.errors import SaescopeError

SUMMARY = "held-out"
"""Name for the metrics in a run's summary, measured on held-out rows at the end of training."""
_CE = "nats per token"
SUMMARISED: dict[str, Metric] = {
    "fve": Metric(None, "share", "higher", "1 − Σ‖t − t̂‖² / Σ‖t − mean t‖²", 0),
    "l0": Metric(None, "features per row", "none", "mean number of features with a value ≠ 0", 0),
    "cosine": Metric(None, "cosine", "higher", "mean cosine of t and t̂ about the training mean", 0),
    "ce_recovered_mean": Metric(
        None, "share", "higher", "(CE ablated − CE spliced) / (CE ablated − CE clean), ablated to the training mean", 0),
    "ce_recovered_zero": Metric(
        None, "share", "higher", "(CE ablated − CE spliced) / (CE ablated − CE clean), ablated to zero", 0),
    "ce_spliced": Metric(None, _CE, "lower", "cross-entropy with t̂ in place of t", 0),
    "kl": Metric(None, _CE, "lower", "KL(clean ‖ spliced)", 0),
    "silent": Metric(None, "share", "lower", "share of features active in no held-out row", 0),
    "dense": Metric(None, "share", "none", "share of features active in more than 10 % of held-out rows", 0),
}
"""Metrics of a summary, without values."""


@dataclass(frozen=True)
class Column:
    """One metric, across runs."""

    eval: str
    group: str
    name: str
    unit: str
    direction: str
    formula: str

    @property
    def key(self) -> str:
        """Key such as `core.reconstruction.fve`, for URLs and files."""
        return f"{self.eval}.{self.group}.{self.name}"


@dataclass(frozen=True)
class Row:
    """Metrics of a run, or of one of its controls."""

    run: str
    control: str
    """Empty for the run itself."""
    figures: Mapping[str, Metric]
    """Metrics by column key."""


@dataclass(frozen=True)
class Evaluated:
    """All metrics of one run."""

    name: str
    folder: Path
    results: Mapping[str, EvalResult] = field(default_factory=dict)
    summary: Mapping[str, Metric] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """The run's own row, then one per control and per reference."""
        own = {f"{SUMMARY}.heldout.{name}": metric for name, metric in self.summary.items()}
        others: dict[str, dict[str, Metric]] = {}
        for name, found in self.results.items():
            own |= _keyed(name, found.found.metrics)
            beside = {one: control.metrics for one, control in found.controls.items()} | dict(found.references)
            for other, metrics in beside.items():
                others.setdefault(other, {}).update(_keyed(name, metrics))
        return [Row(self.name, "", own), *(Row(self.name, other, figures) for other, figures in others.items())]


def of_run(run: Run) -> Evaluated:
    """Read a run's evaluations and its summary; unreadable results are listed in `problems`."""
    found, problems = {}, []
    for path in results(run.folder):
        try:
            result = read(path)
        except SaescopeError as error:
            problems.append(str(error))
            continue
        found[result.eval] = result
    return Evaluated(run.name, run.folder, found, _summarised(run), tuple(problems))


def arguments(found: EvalResult) -> list[str]:
    """Arguments for `sae eval RUN` that run just this evaluation."""
    source = found.settings.get("source")
    if source is None:
        return ["--only", found.eval]
    given = {name: found.settings[name] for name in ("text", "label", "subset", "split")}
    parts = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    return ["--labelled", source, *parts]


def columns(rows: Sequence[Row]) -> list[Column]:
    """Columns for every metric in the rows: summaries first, then evaluations in order of appearance."""
    found: dict[str, Column] = {}
    for row in rows:
        for key, metric in row.figures.items():
            eval_, group, name = key.split(".", 2)
            found.setdefault(key, Column(eval_, group, name, metric.unit, metric.direction, metric.formula))
    return sorted(found.values(), key=lambda column: column.eval != SUMMARY)


def same_training(one: Evaluated, every: Sequence[Evaluated]) -> list[Evaluated]:
    """A run and all runs that differ from it only in their seeds."""
    from analysis.evals.common.seeds import same_training as with_seeds

    same = {folder for folder, _ in with_seeds(one.folder, [other.folder for other in every])}
    return [other for other in every if other.folder in same or other is one]


def _keyed(eval_: str, metrics: Metrics) -> dict[str, Metric]:
    return {f"{eval_}.{group}.{name}": metric for group, some in metrics.items() for name, metric in some.items()}


def _summarised(run: Run) -> dict[str, Metric]:
    heldout: Mapping[str, Any] = runs.section(run.summary, "heldout")
    n = runs.number(heldout.get("n_units")) or 0
    out = {}
    for name, about in SUMMARISED.items():
        value = runs.number(heldout.get(name))
        if value is not None:
            low, high = run.interval(f"heldout/{name}") or (None, None)
            out[name] = Metric(value, about.unit, about.direction, about.formula, int(n), low, high)
    return out
