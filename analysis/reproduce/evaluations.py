"""Which evaluations tell trained SAEs from their controls, and which tell variants from each other?

All variants at one L0 on one stream of batches for each seed, and for each seed the controls too: random SAE, principal
components and raw channels; frozen random decoder, frozen random encoder, and an SAE of the model with random weights, each
TopK, and AbsTopK for the variants of signed codes. `evaluations.csv` has a row for each seed and variant or control (those
of signed codes end in `-signed`), a column for each figure.

    evaluations-separation.csv   for each figure that judges: of how many variants it says that they are better than a
                                 control, by an interval over documents and seeds that leaves zero out; and how many
                                 pairs of variants it tells apart
    evaluations-stability.csv    what other seeds find again, for which all seeds must be there

Left out, so that it ends in 90 minutes on two cores: other widths and L0s, sites and models; the quick suite is a few
thousand rows and ten documents' tokens.
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
"""By variant, one for each seed, the results by evaluation."""


def run(job: Job) -> list[Row]:
    """Train one seed's sweep and evaluate each member; a row for each, and for each control."""
    options, training = _split(job)
    rows: list[Row] = []
    seen: set[bool] = set()
    for config, trained in train_together(training):
        signed = _signed(config)
        found = evaluate(
            trained.run, options.get("suite", "quick"), options["only"], controls=True, seed=job.seed,
            # of one site, shape and L0: the first of each kind stands for all
            without=CHEAP if signed in seen else (), display=Display(quiet=job.quiet),
        ).results
        rows.append({"setting": short_name(config), **_figures(found, "")})
        if signed not in seen:
            there = dict.fromkeys(name for one in found.values() for name in one.controls)
            rows += [{"setting": _control(name, signed), **_figures(found, name)} for name in there]
        seen.add(signed)
    return rows


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Agreement between seeds, and the two tables."""
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
    """A row for each figure that judges.

    Args:
        results: of the same seeds for every variant.
        signed: which variants have signed codes; the first of a kind has its cheap controls.
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
    """How a figure ranks variants, beside controls and beside each other."""
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
    """Over seeds."""
    return sum(one.value for one in found if one.value is not None) / len(found)


def _with(
    results: Results, signed: Mapping[str, bool], variant: str, control: str, name: str
) -> Sequence[Mapping[str, EvalResult]]:
    """Whose results have a control of a variant: its own, or those of the first of its kind."""
    if control in results[variant][0][name].controls:
        return results[variant]
    return next(results[other] for other in results if signed[other] == signed[variant])


def _metrics(seeds: Sequence[Mapping[str, EvalResult]], place: tuple[str, str, str], control: str) -> list[Metric]:
    """A figure of each seed, of the run or of one of its controls; none where one seed lacks it."""
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
    """Every figure, by evaluation, group and name."""
    out: dict[str, Any] = {}
    for name, one in found.items():
        there = one.controls.get(control) if control else one.found
        for group, metrics in there.metrics.items() if there is not None else ():
            out |= {f"{name}.{group}.{metric}": value.value for metric, value in metrics.items()}
    return out


def _split(job: Job) -> tuple[dict[str, Any], Job]:
    """How to evaluate, and the job of the training alone."""
    fields = dict(job.fields)
    options = dict(fields.pop("evals"))
    return {**options, "only": tuple(options["only"])}, replace(job, fields=fields)


def _signed(config: Config) -> bool:
    return bool(getattr(config.sae, "absolute", False))


def _control(name: str, signed: bool) -> str:
    return f"{name}-signed" if signed else name
