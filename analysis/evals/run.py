"""Evaluations of a run: each on the SAE and on its controls, on the same rows, written one by one into runs/NAME/evals/.

A result whose inputs are the same is not measured again. One evaluation that cannot be made says why, in one sentence, and
the others go on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.evals.common import result
from analysis.evals.common.context import Context, open_context
from analysis.evals.common.evaluation import CHEAP, TRAINED, Evaluation, Suite
from analysis.evals.common.result import EvalResult, Found
from analysis.evals.common.seeds import other_seeds
from analysis.evals.controls import trained as trained_controls
from analysis.evals.controls.cheap import cheap_controls
from analysis.evals.registry import chosen
from analysis.trained import TrainedSAE
from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.io.files import read_json
from sae.torch_state import own_torch_state
from training.display import Display, Task

SEED = 0
PARTS = 100
"""Into how many parts a second of expected work is cut for the progress display."""


@dataclass(frozen=True)
class Evaluated:
    """What became of the evaluations of one run."""

    run: Path
    results: Mapping[str, EvalResult] = field(default_factory=dict)
    """By the name of the evaluation, in the order of the registry."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Those that could not be made, with the sentence that says why."""
    reused: tuple[str, ...] = ()
    """Those that were there already."""


@own_torch_state()
def evaluate(
    run: str | Path, suite: Suite = "quick", only: Sequence[str] = (), *, controls: bool = False, again: bool = False,
    seed: int = SEED, display: Display | None = None,
) -> Evaluated:
    """Evaluate a run.

    Args:
        run: its folder.
        suite: how much is looked at.
        only: names of evaluations; none means all.
        controls: train the controls of its site first, where they are not there yet.
        again: measure anew what is there.
        seed: of every draw.
        display: shows progress.

    Raises:
        SaescopeError: no such run or evaluation, or a training of controls that fails.
    """
    evaluations, display = chosen(only), display or Display(quiet=True)
    context = open_context(run, suite, seed=seed, display=display)
    if controls:
        trained_controls.make(context.trained, seed, display)
    return _Session(context, evaluations, display).all(again=again)


@dataclass
class _Session:
    """The evaluations of one run."""

    context: Context
    evaluations: Sequence[Evaluation]
    display: Display

    @property
    def trained(self) -> TrainedSAE:
        """The run."""
        return self.context.trained

    @cached_property
    def control_runs(self) -> dict[str, Path]:
        """Trained controls that are there."""
        return trained_controls.find(self.trained, self.context.seed)

    @cached_property
    def cheap(self) -> dict[str, SAE]:
        """The controls that need no training."""
        return cheap_controls(self.trained.sae, self.context.train_rows, self.context.seed)

    @cached_property
    def controls(self) -> dict[str, tuple[Context, SAE]]:
        """Every control and the rows it is measured on: those of the run, but for another model."""
        out: dict[str, tuple[Context, SAE]] = {name: (self.context, sae) for name, sae in self.cheap.items()}
        for name, folder in self.control_runs.items():
            if name == "random-model":
                other = open_context(folder, self.context.suite, seed=self.context.seed, display=self.display)
                out[name] = (other, other.trained.sae)
            else:
                out[name] = (self.context, store.load(folder, device=self.trained.sae.W_dec.device))
        self.context.coders = [self.context.sae, *(sae for where, sae in out.values() if where is self.context)]
        return out

    def all(self, *, again: bool) -> Evaluated:
        """Every evaluation, in turn."""
        found: dict[str, EvalResult] = {}
        refused: dict[str, str] = {}
        there = {} if again else {e.name: old for e in self.evaluations if (old := self._there(e)) is not None}
        open_ = [e for e in self.evaluations if e.name not in there]
        total = sum(self._cost(e) * (1 + len(self._names(e))) for e in open_)
        with self.display.task("evaluating", max(1, total), unit="parts") as task:
            for evaluation in self.evaluations:
                name = evaluation.name
                if name in there:
                    found[name] = there[name]
                    continue
                try:
                    found[name] = self._measured(evaluation, task)
                except SaescopeError as error:
                    refused[name] = str(error)
                    self.display.say(f"{name}: not measured: {error}")
                else:
                    result.write(found[name], self.trained.folder)
        return Evaluated(self.trained.folder, found, refused, tuple(there))

    def _measured(self, evaluation: Evaluation, task: Task) -> EvalResult:
        """One evaluation, of the run and of each control."""
        settings = evaluation.settings(self.context.suite)
        controls = {name: self.controls[name] for name in self._names(evaluation)}
        own = self._one(evaluation, "", self.context, self.trained.sae, task)
        others: dict[str, Found] = {}
        for name, (context, sae) in controls.items():
            try:
                others[name] = self._one(evaluation, name, context, sae, task)
            except SaescopeError as error:
                others[name] = Found({}, notes=(f"Not measured: {error}",))
        references = evaluation.references(self.context, settings) if evaluation.references else {}
        return EvalResult(
            evaluation.name, evaluation.title, evaluation.version, self._run_name(), self.inputs(evaluation),
            evaluation.plain_settings(self.context.suite), self._sae_facts(), own, others, self._lacking(evaluation),
            references,
        )

    def _one(self, evaluation: Evaluation, name: str, context: Context, sae: SAE, task: Task) -> Found:
        """One coder, its progress shown."""
        cost = self._cost(evaluation)
        shown = 0

        def progress(share: float) -> None:
            nonlocal shown
            now = max(shown, min(cost, round(cost * share)))
            task.advance(now - shown)
            shown = now

        task.progress.update(task.id, description=f"{evaluation.name}{name and ', '}{name}")
        context.progress = progress
        try:
            return evaluation.run(context, sae, evaluation.settings(context.suite))
        finally:
            progress(1.0)
            context.progress = lambda _: None

    def _there(self, evaluation: Evaluation) -> EvalResult | None:
        """The result of equal inputs that lies in the run."""
        path = self.trained.folder / result.FOLDER / f"{evaluation.name}.json"
        if not path.is_file():
            return None
        try:
            old = result.read(path)
            return old if old.inputs.get("id") == self.inputs(evaluation)["id"] else None
        except SaescopeError:  # of another version, or altered: it is made anew
            return None

    def inputs(self, evaluation: Evaluation) -> dict[str, Any]:
        """All that determines a result; opens no rows and no model."""
        facts: dict[str, Any] = {
            "eval": evaluation.name, "version": evaluation.version, "suite": self.context.suite,
            "settings": evaluation.plain_settings(self.context.suite), "weights": _weights(self.trained.folder),
            "rows": self.context.facts(),
            "controls": {name: _weights(self.control_runs[name]) if name in self.control_runs else self.context.seed
                         for name in self._names(evaluation)},
        }
        if evaluation.name == "stability":
            seeds = other_seeds(self.trained, trained_controls.root_of(self.trained))
            facts["seeds"] = sorted(_weights(run) for run in seeds)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return {"id": digest, **json.loads(json.dumps(facts, default=str))}

    def _names(self, evaluation: Evaluation) -> list[str]:
        """The controls that an evaluation has here."""
        return [name for name in evaluation.controls if name in CHEAP or name in self.control_runs]

    def _lacking(self, evaluation: Evaluation) -> tuple[str, ...]:
        return tuple(name for name in evaluation.controls if name in TRAINED and name not in self.control_runs)

    def _cost(self, evaluation: Evaluation) -> int:
        return max(1, round(PARTS * evaluation.cost[0 if self.context.suite == "quick" else 1]))

    def _run_name(self) -> str:
        return str(self.trained.folder.resolve().relative_to(trained_controls.root_of(self.trained).resolve()))

    def _sae_facts(self) -> dict[str, Any]:
        sae, provenance = self.trained.sae, self.trained.sae.provenance
        training = provenance.get("config", {})
        return {
            **sae.config.model_dump(mode="json", by_alias=True), "d_in": sae.d_in, "d_out": sae.d_out,
            "hook_name": provenance.get("hook_name"), "model_name": provenance.get("model_name"),
            "data_seed": training.get("data", {}).get("seed"),
        }


def _weights(run: Path) -> str | None:
    """What names a run's weights, as its manifest has it."""
    manifest = run / "final" / store.MANIFEST
    return read_json(manifest).get("weights_sha256") if manifest.is_file() else None
