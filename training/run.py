"""A training run from start to finish: text → tokens → activations → SAEs → runs/NAME/.

    runs/NAME/config.yaml            as resolved
              metrics.jsonl          while training
              checkpoints/           the last two
              final/                 the SAE, read by `sae.load`
              cfg.json, sae_weights.safetensors   the same for SAELens, if it supports the architecture
              summary.json           held-out metrics with intervals; present once the run has finished
              continued_from.json    the run it was started from with --from (`training.continue_run`)

A sweep has such a folder per member in runs/NAME/MEMBER/, and shared checkpoints in runs/NAME/checkpoints/. If several
processes train parts of it (`training.sweep_part`), each has its own checkpoints in runs/NAME/checkpoints/PART/.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sae.devices import resolve_device
from sae.errors import SaescopeError
from sae.io.files import write_bytes
from sae.io.locks import locked
from sae.kernels import backend
from sae.torch_state import own_torch_state
from sae.units import Duration, Time
from training.activations.batches import FIRST, Address
from training.activations.calibration import calibrate
from training.activations.harvest import open_data
from training.checkpoint import Checkpoints
from training.compile_ahead import compiling
from training.config import reading as configs
from training.config.schema import Config
from training.config.unused import unused
from training.continue_run import continued_from
from training.display import Display
from training.distributed.world import World, mark_launch, world_of
from training.finish import Result, finish, finished
from training.loop import Every, EverySeconds, Interrupted, fit
from training.memory import require_saes
from training.provenance import first_difference
from training.report import Report, loggers
from training.run_folder import run_folder
from training.saver import Saver
from training.schedule import Clock
from training.sweep_part import SweepPart
from training.sweep_shared import Reader, Shared, all_hooks, share
from training.trainer import Trainer, new_sae

_MAY_CHANGE = ("checkpoint_every", "shards", "patience")
"""Keys of `train` that may change on --resume."""
Source = str | Path | Config | dict[str, Any]


def train(
    config: Source, overrides: Sequence[str] = (), *, runs: str | Path = "runs", resume: bool = False,
    from_run: str | Path | None = None, quiet: bool = False, display: Display | None = None,
) -> Result:
    """Train the SAE that a config describes.

    Args:
        config: a YAML file, its fields as a dict, or a resolved config.
        overrides: dotted keys, `sae.k=64`.
        runs: the folder that holds the runs.
        resume: continue an interrupted run of the same config, bit for bit.
        from_run: the folder of another run, whose last checkpoint the new run starts from (`training.continue_run`).
        quiet: no progress display.
        display: an existing display, if the training is one step of a larger job.

    Raises:
        SaescopeError: anything a user can cause; see the message.
    """
    members = _resolved(config, overrides)
    if len(members) > 1:
        raise SaescopeError(
            f"the config is a sweep of {len(members)} SAEs ({', '.join(m.name for m in members)}); call training.sweep "
            "instead of training.train."
        )
    return run_in_folders(
        members, runs, _from_config, resume=resume, from_run=from_run, display=display or Display(quiet=quiet)
    )[0]


def sweep(
    config: Source | Sequence[Config], overrides: Sequence[str] = (), *, runs: str | Path = "runs", resume: bool = False,
    from_run: str | Path | None = None, quiet: bool = False, part: SweepPart | None = None,
) -> list[Result]:
    """Train all SAEs of a config on one stream of batches; return their results in the config's order.

    Arguments are those of `train`; `config` may also be a sequence of resolved configs, or describe a single SAE.
    `part`: train only this part of the sweep; other processes train the rest from the same cache.
    """
    if isinstance(config, Sequence) and not isinstance(config, str):
        members = [one for c in config for one in _resolved(c, overrides)]
    else:
        members = _resolved(config, overrides)
    if part is not None:
        members = part.members(members)
    return run_in_folders(
        members, runs, _from_config, resume=resume, from_run=from_run, display=Display(quiet=quiet), part=part
    )


def _resolved(config: Source, overrides: Sequence[str]) -> list[Config]:
    if isinstance(config, str | Path):
        return configs.read(config, overrides)
    if isinstance(config, Config):
        return configs.resolve(config.plain(), overrides) if overrides else [config]
    return configs.resolve(config, overrides)


def _from_config(members: Sequence[Config], display: Display) -> Shared:
    data = open_data(members[0], all_hooks(members), display, check=partial(require_saes, members))
    return share(members, data, display)


def run_in_folders(
    members: Sequence[Config], runs: str | Path, opened: Callable[[Sequence[Config], Display], Shared], *,
    resume: bool, display: Display, from_run: str | Path | None = None, part: SweepPart | None = None,
) -> list[Result]:
    """Train members into folders under `runs`, on the rows that `opened` provides.

    Returns the saved results if all are finished and `resume` is set; refuses names that are taken.
    """
    if from_run is not None and (resume or len(members) > 1):
        raise SaescopeError("--from starts a new run of a single SAE; it cannot be combined with --resume or a sweep.")
    folders = [run_folder(runs, c.name) for c in members]
    with ExitStack() as held:
        world = held.enter_context(world_of(members))
        display = display if world.is_first else Display(quiet=True)
        if again := world.goes_on(folders[0]):
            resume, from_run = True, None
        if resume and all((f / "summary.json").exists() for f in folders):
            _check_same(members, folders)
            display.say(f"{folders[0]}: already finished")
            return [finished(f) for f in folders]
        with world.in_turn():
            if world.is_first:
                for folder in folders:
                    held.enter_context(locked(folder))
                _refuse_taken(members, folders, resume=resume)
                if from_run is not None:
                    held.enter_context(continued_from(from_run, members[0], folders[0]))
        resume = resume or from_run is not None or again
        return run(members, folders, opened, display, resume=resume, world=world, part=part)


def _refuse_taken(members: Sequence[Config], folders: Sequence[Path], *, resume: bool) -> None:
    """Refuse existing run folders unless the same config is resumed, other folders with a final/, and unused settings."""
    if not resume and (reason := unused(members[0])):
        raise SaescopeError(reason)
    for folder in folders:
        begun = (folder / "config.yaml").exists()
        if begun and not resume:
            raise SaescopeError(
                f"{folder} exists; add --resume to continue it, choose another name (name=...), or remove it."
            )
        final = folder / "final"
        if not begun and final.exists() and not (final.is_dir() and not any(final.iterdir())):
            raise SaescopeError(
                f"{folder} is not a run (it has no config.yaml), but its final/ would be overwritten; choose another name."
            )
    _check_same(members, folders)


def _check_same(members: Sequence[Config], folders: Sequence[Path]) -> None:
    for member, folder in zip(members, folders, strict=True):
        path = folder / "config.yaml"
        if path.exists() and (there := _may_go_on_as(configs.read(path)[0], member)) != member:
            key = first_difference(there.plain(), member.plain())
            raise SaescopeError(f"{folder} was trained with another config ({key}); resume it with its own config.yaml.")


def _may_go_on_as(there: Config, member: Config) -> Config:
    """The saved config with the keys that may change on --resume taken from the new one."""
    train = there.train.model_copy(update={key: getattr(member.train, key) for key in _MAY_CHANGE})
    return there.model_copy(update={"train": train})


@own_torch_state()
def run(
    members: Sequence[Config], folders: Sequence[Path] | None, opened: Callable[[Sequence[Config], Display], Shared],
    display: Display, *, resume: bool = False, world: World | None = None, part: SweepPart | None = None,
) -> list[Result]:
    """Open the rows, train, evaluate and save. Without `folders` nothing is written.

    `world`: the ranks of a distributed run. `part`: the part of a sweep that the members are.
    """
    world = world or World()
    began = time.monotonic()
    first = members[0]
    device = resolve_device(first.train.device)
    # ranks fill a cache together; the first one compiles the loops for its whole machine
    kernels = backend(device, first.train.kernels, first.train.precision)
    with compiling(members, kernels) if world.is_first else nullcontext():
        shared = opened(members, display)
    trainers = [
        Trainer(m, new_sae(m, calibrate(m.site, shared.mask), world.ranks), shared.clock, device, say=display.say)
        for m in members
    ]
    world.broadcast_weights(trainers)
    checkpoints = _checkpoints(folders, shared, world, trainers, part)
    start = _continue(checkpoints, trainers, display) if checkpoints and resume else FIRST
    written = folders if world.is_first else None
    places: Sequence[Path | None] = written or [None] * len(members)
    outs = [loggers(m, f, t.n_steps) for m, f, t in zip(members, places, trainers, strict=True)]
    # written only once everything is known to fit: the config.yaml takes the run's name
    for member, folder in zip(members, written or (), strict=written is not None):
        mark_launch(folder)
        write_bytes(folder / "config.yaml", member.yaml().encode())
    with display.task("training", shared.clock.n_steps * shared.clock.batch_rows) as task:
        task.skip(trainers[0].rows_seen)
        report = Report(trainers, outs, shared.heldout, task)
        _fit(first, trainers, shared, start, checkpoints, report, world)
        speed = task.per_second()
    timing = {"tokens_per_s": speed, "seconds": time.monotonic() - began}
    results = finish(members, places, trainers, shared, display, timing, world)
    report.close([result.summary for result in results])
    return results


def _checkpoints(
    folders: Sequence[Path] | None, shared: Shared, world: World, trainers: Sequence[Trainer], part: SweepPart | None
) -> Checkpoints | None:
    """The checkpoints of one run, or of a sweep or part of one, whose members share a parent folder."""
    if folders is None:
        return None
    group = folders[0] if len(folders) == 1 else folders[0].parent
    name = "checkpoints" if part is None or len(folders) == 1 else f"checkpoints/{part.name}"
    return world.checkpoints(group / name, shared.data.tokens.made_from, trainers)


def _continue(checkpoints: Checkpoints, trainers: Sequence[Trainer], display: Display) -> Address:
    found = checkpoints.load(trainers)
    if found is None:
        return FIRST
    address, changed = found
    for line in changed:
        display.say(f"warning: {line} since the checkpoint; the run will not continue bit for bit")
    if trainers[0].n_steps > trainers[0].clock.n_steps:
        raise SaescopeError(
            f"the checkpoint is from step {trainers[0].n_steps}, but train.budget = {trainers[0].config.train.budget} is "
            f"only {trainers[0].clock.n_steps} steps; increase it."
        )
    display.say(f"continuing after step {trainers[0].n_steps}")
    return address


def _fit(
    first: Config, trainers: Sequence[Trainer], shared: Shared, start: Address, checkpoints: Checkpoints | None,
    report: Report, world: World,
) -> None:
    """Run the training loop over the shared batches."""
    clock, every = shared.clock, first.train
    with ExitStack() as stack:
        stream = shared.batches.stream(start, prefetch=first.data.prefetch, rank=world.row_index, n_ranks=world.n_rows)
        reader = stack.enter_context(closing(Reader(stream, start)))
        saver = stack.enter_context(Saver(checkpoints, trainers, report.task.display.say)) if checkpoints else None
        try:
            fit(
                trainers, reader, clock.n_steps, log=Every(clock.steps(every.log_every), report.log),
                evaluate=Every(clock.steps(first.eval.every), report.evaluate),
                save=_save(every.checkpoint_every, clock, saver, reader) if saver else None,
                advance=lambda: report.task.advance(clock.batch_rows), agree=world.agree,
                echo_seconds=world.echo_seconds,
            )
        except Interrupted as stop:
            raise Interrupted(f"{stop} Continue with --resume.") from None


def _save(interval: Duration | Time, clock: Clock, saver: Saver, reader: Reader) -> Every | EverySeconds:
    def save(_: int) -> None:
        saver.save(reader.next)

    if isinstance(interval, Time):
        return EverySeconds(interval.seconds, save, lambda: saver.free)
    return Every(clock.steps(interval), save)
