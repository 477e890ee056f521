"""What experiments on a language model share: SAEs trained on one stream of batches."""

from pathlib import Path

from analysis.reproduce.jobs import Job
from analysis.reproduce.tables import Row
from training.config.reading import merged, resolve
from training.config.schema import Config
from training.finish import Result
from training.run import sweep


def members(job: Job) -> list[Config]:
    """The trainings of a job: its fields are a config's, whose order of rows and initial weights follow the seed."""
    seeds = {"name": job.folder.name, "data": {"seed": job.seed}, "sae": {"seed": job.seed}}
    return resolve(merged(dict(job.fields), seeds), where=job.folder.name)


def train_together(job: Job) -> list[tuple[Config, Result]]:
    """Train them, or go on where an attempt stopped."""
    configs = members(job)
    trained = sweep(configs, runs=job.folder.parent, resume=True, quiet=job.quiet)
    return list(zip(configs, trained, strict=True))


def short_name(config: Config) -> str:
    """A member's name in its sweep."""
    return Path(config.name).name


def figures(result: Result) -> Row:
    """The held-out figures of a summary that experiments report."""
    held, summary = result.summary["heldout"], result.summary
    return {
        "l0": held["l0"], "fve": held["fve"], "cosine": held["cosine"], "ce_recovered": held.get("ce_recovered_mean"),
        "kl": held.get("kl"), "dead": summary["dead"]["share"], "dense": held["dense"],
        "tokens_per_cpu_s": summary["timing"]["tokens_per_cpu_s"],
    }
