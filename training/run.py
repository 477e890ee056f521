"""A training from beginning to end: text → tokens → activations → SAEs → runs/NAME/.

    runs/NAME/config.yaml            as resolved
              metrics.jsonl          while training
              checkpoints/           the last two
              final/                 the SAE as `sae.load` reads it
              cfg.json, sae_weights.safetensors   the same for SAELens, where it has the architecture
              summary.json           held-out figures with intervals; its presence means: finished

A sweep has such a folder per member in runs/NAME/MEMBER/, and shared checkpoints in runs/NAME/checkpoints/.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.io.files import read_json, write_bytes, write_json
from sae.io.locks import locked
from sae.kernels import backend
from training.activations.batches import FIRST, Address, Batches
from training.activations.calibration import KeepMask, calibrate
from training.activations.harvest import Data, open_data
from training.checkpoint import Checkpoints, surroundings
from training.config import reading as configs
from training.config.schema import Config
from training.display import Display
from training.evaluate import HeldOut, Spliced
from training.loggers import MetricsFile, Wandb
from training.loop import Interrupted, Logger, fit
from training.model.devices import resolve_device
from training.provenance import first_difference
from training.schedule import Clock
from training.trainer import Trainer, new_sae


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the SAE, its summary and its folder."""

    sae: SAE
    summary: dict[str, Any]
    folder: Path


def train(
    config: str | Path | Config | dict[str, Any] | Sequence[Config], overrides: Sequence[str] = (), *,
    runs: str | Path = "runs", resume: bool = False, quiet: bool = False,
) -> list[Trained]:
    """Train what a config describes: one SAE, or every member of a sweep on one stream of batches.

    Args:
        config: a YAML file, its fields as a dict, or resolved configs.
        overrides: dotted keys, `sae.k=64`.
        runs: the folder of all runs.
        resume: continue an interrupted run of the same config, bit for bit.
        quiet: no progress display.

    Raises:
        SaescopeError: anything a user can cause; see the message.
    """
    members = _resolved(config, overrides)
    folders = [Path(runs) / c.name for c in members]
    display = Display(quiet=quiet)
    if resume and all((f / "summary.json").exists() for f in folders):
        _check_same(members, folders)
        display.say(f"{folders[0]}: already finished")
        return [_finished(f) for f in folders]
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(locked(folder))
        _refuse_taken(members, folders, resume=resume)
        return _train(members, folders, display, resume=resume)


def _resolved(
    config: str | Path | Config | dict[str, Any] | Sequence[Config], overrides: Sequence[str]
) -> list[Config]:
    if isinstance(config, str | Path):
        return configs.read(config, overrides)
    if isinstance(config, dict):
        return configs.resolve(config, overrides)
    members = [config] if isinstance(config, Config) else list(config)
    return [c for m in members for c in configs.resolve(m.plain(), overrides)] if overrides else members


def _refuse_taken(members: list[Config], folders: list[Path], *, resume: bool) -> None:
    """Refuse run folders that exist, unless the same config is resumed."""
    if not resume:
        for folder in folders:
            if (folder / "config.yaml").exists():
                raise SaescopeError(
                    f"{folder} exists; add --resume to continue it, or choose another name (name=...) or remove it."
                )
    _check_same(members, folders)


def _check_same(members: list[Config], folders: list[Path]) -> None:
    for member, folder in zip(members, folders, strict=True):
        path = folder / "config.yaml"
        if path.exists() and (there := configs.read(path)[0]) != member:
            key = first_difference(there.plain(), member.plain())
            raise SaescopeError(f"{folder} was trained with another config ({key}); resume it with its own config.yaml.")


def _train(members: list[Config], folders: list[Path], display: Display, *, resume: bool) -> list[Trained]:
    began = time.monotonic()
    first = members[0]
    device = resolve_device(first.train.device)
    backend(device, first.train.kernels, first.train.precision)
    hooks = tuple(dict.fromkeys(hook for m in members for hook in m.site.hooks))
    mask_hooks = first.data.mask_hooks or hooks
    data = open_data(first, tuple(dict.fromkeys((*hooks, *mask_hooks))), display)
    mask = KeepMask(data.source, data.tokens, first.data.model_copy(update={"mask_hooks": mask_hooks}))
    clock = Clock.of(first.train.budget, batch_rows=first.data.batch_rows, epoch_rows=data.tokens.n_eligible())
    batches = Batches(
        data.source, data.tokens, mask, hooks, seed=first.data.seed, batch_rows=first.data.batch_rows,
        superblock_rows=first.data.superblock_rows, block_rows=first.block_rows,
    )
    display.say(
        f"shuffling {batches.n_superblocks} superblocks of {batches.blocks_per_superblock * batches.block_rows:,} "
        f"rows, {batches.superblock_bytes() / 1e6:,.0f} MB each, {1 + first.data.prefetch} in memory"
    )
    heldout = HeldOut(data.source, data.tokens, mask, hooks, first.eval.n_rows)
    trainers = [Trainer(m, new_sae(m, calibrate(m.site, mask)), clock, device) for m in members]
    # a sweep's members lie in one folder, and so do their checkpoints
    group = folders[0] if len(members) == 1 else folders[0].parent
    checkpoints = Checkpoints(group / "checkpoints", data.tokens.made_from)
    start = _continue(checkpoints, trainers, display) if resume else FIRST
    loggers = [_loggers(m, f, t.n_steps) for m, f, t in zip(members, folders, trainers, strict=True)]
    # not before everything is known to fit: a name is taken by its config
    for member, folder in zip(members, folders, strict=True):
        write_bytes(folder / "config.yaml", member.yaml().encode())
    with display.task("training", clock.n_steps * clock.batch_rows) as task:
        task.skip(trainers[0].rows_seen)
        try:
            fit(
                trainers, batches, start, clock, config=first.train, eval_steps=clock.steps(first.eval.every),
                prefetch=first.data.prefetch, heldout=heldout, loggers=loggers, checkpoints=checkpoints, task=task,
            )
        except Interrupted as stop:
            raise Interrupted(f"{stop} Continue with --resume.") from None
        speed = task.per_second()
    timing = {"tokens_per_s": speed, "seconds": time.monotonic() - began}
    return _finish(members, folders, trainers, data, mask, heldout, loggers, display, timing)


def _continue(checkpoints: Checkpoints, trainers: list[Trainer], display: Display) -> Address:
    found = checkpoints.load(trainers)
    if found is None:
        return FIRST
    address, changed = found
    for line in changed:
        display.say(f"warning: {line} since the checkpoint; the run will not continue bit for bit")
    display.say(f"continuing after step {trainers[0].n_steps}")
    return address


def _loggers(member: Config, folder: Path, n_steps: int) -> list[Logger]:
    folder.mkdir(parents=True, exist_ok=True)
    out: list[Logger] = [MetricsFile(folder / "metrics.jsonl", keep_steps=n_steps)]
    if member.train.wandb is not None:
        out.append(Wandb(member.train.wandb, member.name, folder, member.plain()))
    return out


def _finish(
    members: list[Config], folders: list[Path], trainers: list[Trainer], data: Data, mask: KeepMask, heldout: HeldOut,
    loggers: list[list[Logger]], display: Display, timing: dict[str, float],
) -> list[Trained]:
    """Evaluate, save, summarise."""
    spliced: list[dict[str, Any]] = [{} for _ in members]
    if data.model is not None and members[0].eval.n_tokens:
        measure = Spliced(data.model, data.source, data.tokens, mask, members[0].eval.n_tokens)
        with display.task("splicing", len(measure.seqs) * (data.tokens.n_ctx - 1)) as task:
            sites = [(t.sae, m.site) for t, m in zip(trainers, members, strict=True)]
            spliced = measure.measure(sites, task.advance)
    dropped = mask.dropped()
    out: list[Trained] = []
    for member, folder, trainer, ce, logs in zip(members, folders, trainers, spliced, loggers, strict=True):
        dead = trainer.dead()
        facts = provenance(member, data)
        digest = store.save(trainer.sae, folder / "final", provenance=facts)
        trained = store.load(folder / "final", device=str(trainer.device), kernels=member.train.kernels)
        refusal = saelens.export(trained, folder, metadata=facts)
        held: dict[str, Any] = heldout.measure(trained, member.site) | ce
        summary: dict[str, Any] = {
            "name": member.name, "variant": member.sae.variant, "d_sae": member.sae.d_sae, "weights_sha256": digest,
            "heldout": held,
            "dead": {"share": float(dead.float().mean()), "n": int(dead.sum()),
                     "window_rows": trainer.clock.rows(member.train.dead_window)},
            "mask": dropped, "n_rows_trained": trainer.rows_seen, "n_steps": trainer.n_steps,
            "timing": timing | _pace(trainer),
            "saelens": "cfg.json" if refusal is None else refusal, "surroundings": surroundings(),
        }
        write_json(folder / "summary.json", summary)
        for log in logs:
            log.close({f"heldout/{k}": v for k, v in held.items()})
        out.append(Trained(trained, summary, folder))
    return out


def _pace(trainer: Trainer) -> dict[str, float | None]:
    """Rows per CPU second of the training thread; meaningful on a CPU with one thread, where steps wait for nothing."""
    n_steps, seconds = trainer.pace
    return {"tokens_per_cpu_s": n_steps * trainer.clock.batch_rows / seconds if seconds else None}


def provenance(member: Config, data: Data) -> dict[str, Any]:
    """What the weights were made from, beside their config; no times, no paths of this machine."""
    return {
        "site": member.site.model_dump(mode="json"), "made_from": data.tokens.made_from,
        "config": {k: v for k, v in member.plain().items() if k in ("corpus", "data", "optim", "sae", "model")},
        "hook_name": member.site.input, "hook_name_out": member.site.target,
        "model_name": None if data.model is None else data.model.name,
        "context_size": data.tokens.n_ctx, "prepend_bos": data.model is not None and data.model.prepend_bos,
        "dataset_path": "synthetic" if member.corpus.synthetic else "+".join(s.source for s in member.corpus.sources),
    }


def _finished(folder: Path) -> Trained:
    return Trained(store.load(folder), read_json(folder / "summary.json"), folder)
