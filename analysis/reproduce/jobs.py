"""Run an experiment as jobs, one per seed and setting, that survive an interruption.

    configs/reproduce/NAME.yaml           seeds, base fields, changes of each setting, and the short version for tests
    docs/results/NAME.csv                 one row per seed and setting, with the seconds it took and the machine
                 NAME-summary.csv         per setting and metric: mean over seeds, 95 % t-interval, number of seeds
    runs/reproduce/NAME/SETTING-SEED.json rows of a finished job, and the fields it was run with
                        SETTING-SEED/     the job's own folder, for trainings that resume

A finished job is not rerun unless its fields change. Seconds are those of the attempt that finished it, and mean little
for jobs run in parallel.
"""

import importlib
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from analysis.reproduce import EXPERIMENTS
from analysis.reproduce.tables import NOT_METRICS, Row, summary, write_table
from sae.errors import SaescopeError
from sae.io.files import read_json, write_json
from sae.io.paths import user_path
from sae.section import Section
from training.config.reading import merged
from training.config.yaml12 import load_yaml
from training.display import Display

RESULTS = Path("docs/results")
"""Folder of the experiments' tables and pictures."""


class Plan(Section):
    """The config of an experiment."""

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each setting is run once per seed."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Fields shared by all jobs."""
    settings: dict[str, dict[str, Any]] = Field(min_length=1)
    """Changes to the base fields, by setting."""
    short: dict[str, Any] = Field(default_factory=dict)
    """Changes to this config for the short version, which takes seconds; settings set to null are skipped."""


@dataclass(frozen=True)
class Job:
    """One seed and setting."""

    setting: str
    seed: int
    fields: Mapping[str, Any]
    """Base fields merged with the setting's."""
    folder: Path
    """The job's own folder under runs/, for anything that a resumed attempt needs."""
    quiet: bool = False


def read_plan(path: Path, *, short: bool = False) -> Plan:
    """Read an experiment's config.

    Raises:
        SaescopeError: no such file, or it is invalid.
    """
    if not path.is_file():
        raise SaescopeError(f"there is no experiment config at {path}; give its folder with --configs.")
    fields = load_yaml(path.read_text(encoding="utf-8"), str(path))
    try:
        plan = Plan.model_validate(fields)
        if not short:
            return plan
        fields = merged(fields, plan.short)
        fields["settings"] = {name: setting for name, setting in fields["settings"].items() if setting is not None}
        return Plan.model_validate(fields)
    except ValidationError as error:
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise SaescopeError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def reproduce(
    name: str, *, configs: str | Path = "configs/reproduce", runs: str | Path = "runs/reproduce",
    out: str | Path | None = None, short: bool = False, quiet: bool = False, processes: int = 1,
) -> list[Row]:
    """Run an experiment's remaining jobs, and write its tables.

    Args:
        name: name of the experiment.
        configs: folder of the experiments' configs.
        runs: folder for the jobs' rows and folders.
        out: folder for tables and pictures; default docs/results, or next to the rows for the short version.
        short: run the short version, which takes seconds.
        quiet: print nothing.
        processes: number of jobs to run in parallel, each in its own process. If one fails, the others still finish.

    Returns: one row per seed and setting.

    Raises:
        SaescopeError: no such experiment, an invalid config, or an error in a job.
    """
    if name not in EXPERIMENTS:
        raise SaescopeError(f"there is no experiment called {name!r}; there are {', '.join(EXPERIMENTS)}.")
    plan = read_plan(user_path(configs) / f"{name}.yaml", short=short)
    module = importlib.import_module(EXPERIMENTS[name])
    place = user_path(runs) / (f"{name}-short" if short else name)
    out = user_path(out) if out is not None else place if short else RESULTS
    display = Display(quiet=quiet)
    jobs = [
        Job(setting, seed, merged(plan.base, fields), place / f"{setting}-{seed}", quiet)
        for seed in plan.seeds for setting, fields in plan.settings.items()
    ]
    rows: list[Row] = []
    for i, (job, done) in enumerate(zip(jobs, _all_rows(jobs, EXPERIMENTS[name], processes), strict=True)):
        rows += done
        for row in done:
            display.say(f"{name} {i + 1}/{len(jobs)}, seed {job.seed}, {row['setting']}: {_in_words(row)}")
    write_table(out / f"{name}.csv", rows)
    write_table(out / f"{name}-summary.csv", summary(rows))
    if hasattr(module, "finish"):
        module.finish(jobs, rows, out)
    return rows


def _all_rows(jobs: Sequence[Job], module: str, processes: int) -> Iterator[list[Row]]:
    """Rows of each job, in order; `module` has `run(job)` and, optionally, `prepare(jobs)` for parallel runs."""
    experiment = importlib.import_module(module)
    if processes == 1:
        yield from (_rows(job, experiment.run) for job in jobs)
        return
    if hasattr(experiment, "prepare"):
        experiment.prepare([job for job in jobs if _rows_there(job) is None])
    threads = max(1, (os.cpu_count() or 1) // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        try:
            for future in [pool.submit(_rows_apart, job, module) for job in jobs]:
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _rows_apart(job: Job, module: str) -> list[Row]:
    """`_rows` for a process that hasn't imported the experiment yet."""
    return _rows(job, importlib.import_module(module).run)


def _rows(job: Job, run: Any) -> list[Row]:
    """Rows of a job: stored ones with the same fields, or new ones from `run(job)`.

    `run` may set `setting` and `seconds` itself, for jobs that train several SAEs on one stream.
    """
    if (there := _rows_there(job)) is not None:
        return there
    began = time.monotonic()
    made: Sequence[Row] = run(job)
    common = {"seconds": round((time.monotonic() - began) / len(made), 1), "machine": machine()}
    rows = [{"seed": job.seed, "setting": job.setting, **common, **row} for row in made]
    write_json(_record(job), {"fields": job.fields, "rows": rows})
    return rows


def _rows_there(job: Job) -> list[Row] | None:
    """Stored rows with the same fields, if any."""
    path = _record(job)
    if path.exists() and (there := read_json(path)).get("fields") == job.fields:
        return list(there["rows"])
    return None


def _record(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.json")


@cache
def machine() -> str:
    """Description of the machine: processor, threads, torch version, and GPU if there is one."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    model = found[1].strip() if found else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}{gpu}"


def _in_words(row: Row) -> str:
    shown = {k: v for k, v in row.items() if k not in (*NOT_METRICS, "seconds")}
    numbers = "  ".join(f"{k} {v:.4g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in shown.items())
    return f"{numbers}  ({row['seconds']:g} s)"
