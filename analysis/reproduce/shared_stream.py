"""Shared code of the experiments on a language model: SAEs trained on one stream of batches."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from analysis.reproduce.jobs import Job
from analysis.reproduce.tables import Row
from training.activations.harvest import open_data, open_heldout
from training.config.reading import merged, resolve
from training.config.schema import Config
from training.display import Display
from training.finish import Result
from training.run import sweep
from training.sweep_shared import all_hooks


def members(job: Job) -> list[Config]:
    """Training configs of a job; the job's seed sets row order and initial weights."""
    seeds = {"name": job.folder.name, "data": {"seed": job.seed}, "sae": {"seed": job.seed}}
    return resolve(merged(dict(job.fields), seeds), where=job.folder.name)


def train_together(job: Job) -> list[tuple[Config, Result]]:
    """Train (or resume) all SAEs of a job on one stream."""
    configs = members(job)
    trained = sweep(configs, runs=job.folder.parent, resume=True, quiet=job.quiet)
    return list(zip(configs, trained, strict=True))


def short_name(config: Config) -> str:
    """Name of a config in its sweep."""
    return Path(config.name).name


def figures(result: Result) -> Row:
    """Held-out metrics of a summary that experiments report."""
    held, summary = result.summary["heldout"], result.summary
    return {
        "l0": held["l0"], "fve": held["fve"], "cosine": held["cosine"], "ce_recovered": held.get("ce_recovered_mean"),
        "kl": held.get("kl"), "dead": summary["dead"]["share"], "silent": held["silent"], "dense": held["dense"],
        "tokens_per_cpu_s": summary["timing"]["tokens_per_cpu_s"],
    }


def harvest(jobs: Sequence[Job]) -> None:
    """Fill the caches of these jobs once, in advance: parallel processes wouldn't wait for each other to fill one."""
    done = []
    for job in jobs:
        configs = members(job)
        config, hooks = configs[0], all_hooks(configs)
        key = (config.model, config.corpus, config.cache, config.eval, hooks)
        if key not in done:
            done.append(key)
            display = Display(quiet=job.quiet)
            open_heldout(config, open_data(config, hooks, display), display)


def compare(job: Job) -> list[Row]:
    """Train a job's members on one stream and report their metrics; the weights, gigabytes in total, are deleted.

    Besides some of `figures`: the 95 % interval of FVE over held-out documents, and the mean and minimum of the gradient
    norm before clipping, as logged (each logged value is a mean over a hundredth of the training).
    """
    rows: list[Row] = []
    for config, trained in train_together(job):
        low, high = trained.summary["heldout"]["fve_interval"] or (None, None)
        lines = (trained.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        norms = [norm for norm in (json.loads(line).get("grad_norm") for line in lines) if norm is not None]
        figure = figures(trained)
        told = {key: figure[key] for key in ("fve", "silent", "dead", "dense", "l0")}
        rows.append({
            "setting": f"{job.setting} {short_name(config)}", **told, "fve_low": low, "fve_high": high,
            "grad_norm": sum(norms) / len(norms), "grad_norm_least": min(norms),
        })
    shutil.rmtree(job.folder)
    return rows
