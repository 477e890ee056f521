"""Which evaluations separate trained SAEs from controls, and which separate variants from each other?

All variants at one L0 on one stream of batches per seed, with controls per seed: random SAE, PCA and raw channels; frozen
random decoder, frozen random encoder, and an SAE on the model with random weights, each as TopK, and as AbsTopK for
variants with signed codes. `evaluations.csv` has one row per seed and variant or control (controls for signed codes end in
`-signed`), and one column per metric.

    evaluations-separation.csv   for each metric with a better direction: the number of variants it ranks above each
                                 control, by an interval over documents and seeds that excludes zero; and the number of
                                 pairs of variants it separates
    evaluations-stability.csv    stability across seeds, which needs all seeds

To finish in 90 minutes on two cores, other widths, L0s, sites and models are left out; the quick suite has a few thousand
rows and the tokens of ten documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from analysis.evals.common import result
from analysis.evals.common.evaluation import CHEAP, TRAINED
from analysis.evals.common.intervals import difference
from analysis.evals.common.result import EvalResult, Metric
from analysis.evals.run import evaluate
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import members, short_name, train_together
from analysis.reproduce.tables import Row, write_table
from training.config.schema import Config
from training.display import Display

CONTROLS = (*CHEAP, *TRAINED)
Results = Mapping[str, Sequence[Mapping[str, EvalResult]]]
"""By variant: for each seed, the results by evaluation."""


def run(job: Job) -> list[Row]:
    """Train one seed's sweep and evaluate each member; one row per member and control."""
    options, training = _split(job)
    rows: list[Row] = []
    seen: set[bool] = set()
    for config, trained in train_together(training):
        signed = _signed(config)
        found = evaluate(
            trained.run, options.get("suite", "quick"), options["only"], controls=True, seed=job.seed,
            # same site, shape and L0, so the controls of the first member of each kind serve all
            without=CHEAP if signed in seen else (), display=Display(quiet=job.quiet),
        ).results
        rows.append({"setting": short_name(config), **_figures(found, "")})
        if signed not in seen:
            there = dict.fromkeys(name for one in found.values() for name in one.controls)
            rows += [{"setting": _control(name, signed), **_figures(found, name)} for name in there]
        seen.add(signed)
    return rows


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Measure agreement between seeds, and write the two tables."""
    del rows
    options, _ = _split(jobs[0])
    stability: list[Row] = []
    results: dict[str, list[dict[str, EvalResult]]] = {}
    signed: dict[str, bool] = {}
    for job in jobs:
        for config in members(_split(job)[1]):
            folder, name = job.folder.parent / config.name, short_name(config)
            signed[name] = _signed(config)
            found = {e: result.read(folder / result.FOLDER / f"{e}.json") for e in options["only"]}
            results.setdefault(name, []).append(found)
            if len(jobs) > 1:
                again = evaluate(folder, options.get("suite", "quick"), ("stability",), seed=job.seed,
                                 display=Display(quiet=job.quiet)).results
                stability.append({"seed": job.seed, "setting": name, **_figures(again, "")})
    write_table(out / "evaluations-separation.csv", separation(results, signed))
    if stability:
        write_table(out / "evaluations-stability.csv", stability)


def separation(results: Results, signed: Mapping[str, bool]) -> list[Row]:
    """One row per metric that has a better direction.

    Args:
        results: results of the same seeds for every variant.
        signed: which variants have signed codes; the first variant of each kind has the cheap controls.
    """
    first = next(iter(results.values()))[0]
    rows = []
    for name, found in first.items():
        for group, metrics in found.found.metrics.items():
            for metric, one in metrics.items():
                if one.direction != "none":
                    rows.append(_row(results, signed, (name, group, metric)))
    return rows


def _row(results: Results, signed: Mapping[str, bool], place: tuple[str, str, str]) -> Row:
    """How well a metric separates variants from controls and from each other."""
    name, group, metric = place
    own = {variant: _metrics(seeds, place, "") for variant, seeds in results.items()}
    own = {variant: found for variant, found in own.items() if found}
    first = next(iter(results.values()))[0][name]
    one = first.found.metrics[group][metric]
    units = first.found.units.get(one.of)
    n_rows = None if units is None else units.n_rows
    sign = -1 if one.direction == "lower" else 1
    row: Row = {"figure": f"{name}.{group}.{metric}", "direction": one.direction, "unit": one.unit, "variants": len(own)}
    for control in CONTROLS:
        better = worse = told = 0
        for variant, found in own.items():
            theirs = _metrics(_with(results, signed, variant, control, name), place, control)
            gap = difference(theirs, found, n_rows) if theirs else None
            told += gap is not None and gap.low is not None
            better += gap is not None and gap.separable and sign * gap.value > 0
            worse += gap is not None and gap.separable and sign * gap.value < 0
        row |= {f"better_than_{control}": better if told else None, f"worse_than_{control}": worse if told else None}
    gaps = [difference(own[a], own[b], n_rows) for a, b in combinations(own, 2)]
    apart = sum(gap is not None and gap.separable for gap in gaps)
    best = max(own, key=lambda variant: sign * _mean(own[variant]), default=None)
    return row | {"pairs": len(gaps), "pairs_apart": apart, "best": best, "formula": one.formula}


def _mean(found: Sequence[Metric]) -> float:
    """Mean over seeds."""
    return sum(one.value for one in found if one.value is not None) / len(found)


def _with(
    results: Results, signed: Mapping[str, bool], variant: str, control: str, name: str
) -> Sequence[Mapping[str, EvalResult]]:
    """Results that contain a variant's control: its own, or those of the first variant of its kind."""
    if control in results[variant][0][name].controls:
        return results[variant]
    return next(results[other] for other in results if signed[other] == signed[variant])


def _metrics(seeds: Sequence[Mapping[str, EvalResult]], place: tuple[str, str, str], control: str) -> list[Metric]:
    """A metric for each seed, of the run or of a control; empty if any seed lacks it."""
    name, group, metric = place
    out = []
    for found in seeds:
        there = found[name].controls.get(control) if control else found[name].found
        one = None if there is None else there.metrics.get(group, {}).get(metric)
        if one is None or one.value is None:
            return []
        out.append(one)
    return out


def _figures(found: Mapping[str, EvalResult], control: str) -> dict[str, Any]:
    """All metrics, by evaluation, group and name."""
    out: dict[str, Any] = {}
    for name, one in found.items():
        there = one.controls.get(control) if control else one.found
        for group, metrics in there.metrics.items() if there is not None else ():
            out |= {f"{name}.{group}.{metric}": value.value for metric, value in metrics.items()}
    return out


def _split(job: Job) -> tuple[dict[str, Any], Job]:
    """Split a job into evaluation options and the training job."""
    fields = dict(job.fields)
    options = dict(fields.pop("evals"))
    return {**options, "only": tuple(options["only"])}, replace(job, fields=fields)


def _signed(config: Config) -> bool:
    return bool(getattr(config.sae, "absolute", False))


def _control(name: str, signed: bool) -> str:
    return f"{name}-signed" if signed else name
