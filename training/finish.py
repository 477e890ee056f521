"""The end of a training run: evaluate, save, summarise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.io.files import read_json, write_json
from sae.kernels import backend
from training import continue_run
from training.activations.calibration import KeepMask
from training.activations.harvest import Data
from training.checkpoint import surroundings
from training.config.schema import Config
from training.display import Display
from training.distributed.world import World
from training.evaluate import Spliced
from training.sweep_shared import Shared
from training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    sae: SAE
    """The trained SAE as saved, with unit-norm decoder rows."""
    summary: dict[str, Any]
    """Held-out metrics with intervals, dead features, rows dropped by the mask; as in summary.json."""
    folder: Path | None
    """The run's folder; None if nothing was written."""

    @property
    def run(self) -> Path:
        """The run's folder.

        Raises:
            SaescopeError: nothing was written.
        """
        if self.folder is None:
            raise SaescopeError("this training wrote no run folder; pass a name to save it as a run.")
        return self.folder


def finished(folder: Path) -> Result:
    """Load the result of a finished run."""
    return Result(store.load(folder), read_json(folder / "summary.json"), folder)


def finish(
    members: Sequence[Config], folders: Sequence[Path | None], trainers: Sequence[Trainer], shared: Shared,
    display: Display, timing: dict[str, float], world: World | None = None,
) -> list[Result]:
    """Evaluate every member on held-out rows (and spliced into the model, if there is one), then save it with its summary.

    With several ranks, each measures with the features it holds, and only the first writes. The other ranks return their
    shard as the SAE.
    """
    world = world or World()
    spliced = _spliced(members, trainers, shared, display)
    dropped = shared.mask.dropped()
    results = []
    for member, folder, trainer, ce in zip(members, folders, trainers, spliced, strict=True):
        saved = _saved(member, folder, trainer, provenance(member, shared.data, shared.mask), world)
        measured = saved.sae if world.ranks.n == 1 else trainer.sae
        held = ({} if shared.heldout is None else shared.heldout.measure(measured, member.site)) | ce
        summary = saved.summary | _figures(member, trainer) | continue_run.facts(folder) | {
            "heldout": held, "mask": dropped, "timing": timing | _pace(trainer), "surroundings": surroundings(),
        } | world.facts()
        if folder is not None:
            write_json(folder / "summary.json", summary)
        results.append(Result(saved.sae, summary, folder))
    return results


def _spliced(
    members: Sequence[Config], trainers: Sequence[Trainer], shared: Shared, display: Display
) -> list[dict[str, Any]]:
    """CE recovered and KL of the model with each SAE spliced in; empty without a model."""
    data = shared.data
    held = shared.heldout
    if data.model is None or held is None or not members[0].eval.n_tokens:
        return [{} for _ in members]
    measure = Spliced(data.model, held.source, held.tokens, shared.mask, members[0].eval.n_tokens)
    with display.task("measuring the SAE inside the model", len(measure.seqs) * (held.tokens.n_ctx - 1)) as task:
        return measure.measure([(t.sae, m.site) for t, m in zip(trainers, members, strict=True)], task.advance)


def _saved(member: Config, folder: Path | None, trainer: Trainer, facts: dict[str, Any], world: World) -> Result:
    """Save the SAE to `folder`, if there is one; return it in its saved form, with the summary's facts about the save."""
    if (whole := world.gathered(trainer.sae)) is None:
        return Result(trainer.sae, {}, None)
    if folder is None:
        sae = store.unit_copy(whole)
        digest = store.weights_hash(sae)
        sae.provenance, sae.kernels = facts, backend(trainer.device, member.train.kernels)
        return Result(sae.to(trainer.device), {"weights_sha256": digest}, None)
    digest = store.save(whole, folder / "final", provenance=facts)
    # a rank trained only a shard: the whole SAE may not fit on its device
    device, kernels = (str(trainer.device), member.train.kernels) if trainer.ranks.n_shards == 1 else ("cpu", "auto")
    sae = store.load(folder / "final", device=device, kernels=kernels)
    refusal = saelens.export(sae, folder, metadata=facts)
    return Result(sae, {"weights_sha256": digest, "saelens": "cfg.json" if refusal is None else refusal}, folder)


def _figures(member: Config, trainer: Trainer) -> dict[str, Any]:
    share = trainer.dead_share
    return {
        "name": member.name, "variant": member.sae.variant, "d_sae": member.sae.d_sae,
        # if the run was shorter than the window, dead features are unknown
        "dead": {"share": share, "n": None if share is None else trainer.n_dead,
                 "window_rows": trainer.dead_window},
        "n_rows_trained": trainer.rows_seen, "n_steps": trainer.n_steps,
    }


def _pace(trainer: Trainer) -> dict[str, float | None]:
    """Rows per CPU second of the training thread; meaningful for a single-threaded run on a CPU, where nothing waits."""
    n_steps, seconds = trainer.pace
    return {"tokens_per_cpu_s": n_steps * trainer.clock.batch_rows / seconds if seconds else None}


def provenance(member: Config, data: Data, mask: KeepMask) -> dict[str, Any]:
    """What the weights were made from, in addition to their config; without times or local paths."""
    return {
        "site": member.site.model_dump(mode="json"), "made_from": data.tokens.made_from, "mask": {"limits": mask.limits},
        "config": {k: v for k, v in member.plain().items() if k in ("corpus", "data", "optim", "sae", "model")},
        "hook_name": member.site.input, "hook_name_out": member.site.target,
        "model_name": None if data.model is None else data.model.name,
        "context_size": data.tokens.n_ctx, "prepend_bos": data.model is not None and data.model.prepend_bos,
        "dataset_path": "synthetic" if member.corpus.synthetic else "+".join(s.source for s in member.corpus.sources),
    }
