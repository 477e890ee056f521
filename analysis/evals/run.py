"""Run evaluations: each on the SAE and its controls, on the same rows, written one by one to runs/NAME/evals/.

A result with unchanged inputs is reused. Results of trained controls are stored in the controls' own runs, so that runs
sharing a control share its results. If an evaluation fails, the reason is reported and the others continue.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.evals.common import features, result
from analysis.evals.common.context import Context, open_context
from analysis.evals.common.evaluation import CHEAP, Evaluation, Suite
from analysis.evals.common.result import EvalResult, Found
from analysis.evals.common.seeds import weights_of
from analysis.evals.controls import trained as trained_controls
from analysis.evals.controls.cheap import cheap_controls
from analysis.evals.probes.labelled import LabelledText
from analysis.evals.registry import chosen, evaluation_of
from analysis.trained import TrainedSAE, open_trained
from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.torch_state import own_torch_state
from training.display import Display, Task

SEED = 0
PARTS = 100
"""Progress units per second of expected work."""


@dataclass(frozen=True)
class Evaluated:
    """Outcome of the evaluations of one run."""

    run: Path
    results: Mapping[str, EvalResult] = field(default_factory=dict)
    """Results by evaluation, in the registry's order."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Evaluations that failed, with the reason."""
    reused: tuple[str, ...] = ()
    """Evaluations whose existing results were reused."""


@own_torch_state()
def evaluate(
    run: str | Path, suite: Suite = "quick", only: Sequence[str] = (), *, labelled: LabelledText | None = None,
    controls: bool = False, again: bool = False, seed: int = SEED, without: Sequence[str] = (),
    display: Display | None = None,
) -> Evaluated:
    """Evaluate a run.

    Args:
        run: folder of the run.
        suite: amount of data.
        only: names of evaluations; empty means all, or just the labelled one if `labelled` is given.
        labelled: dataset whose labels to probe for.
        controls: train missing controls of its site first.
        again: recompute existing results.
        seed: seed of every draw, and of the controls.
        without: controls to skip; results list them as missing.
        display: shows progress.

    Raises:
        SaescopeError: no such run or evaluation, or training a control failed.
    """
    evaluations = chosen(only) if only or labelled is None else []
    evaluations += [] if labelled is None else [evaluation_of(labelled)]
    display = display or Display(quiet=True)
    context = open_context(run, suite, seed=seed, display=display)
    if controls:
        trained_controls.make(context.trained, seed, display)
    return _Session(context, evaluations, tuple(without), display).all(again=again)


@dataclass
class _Session:
    """State while evaluating one run."""

    context: Context
    evaluations: Sequence[Evaluation]
    without: tuple[str, ...]
    display: Display
    measured: dict[tuple[str, str], Found] = field(default_factory=dict)
    """Control results measured ahead of their turn, by control and evaluation."""

    @property
    def trained(self) -> TrainedSAE:
        """The run."""
        return self.context.trained

    @cached_property
    def control_runs(self) -> dict[str, Path]:
        """Existing trained controls, by name."""
        return trained_controls.find(self.trained, self.context.seed)

    @cached_property
    def cheap(self) -> dict[str, SAE]:
        """Controls that need no training."""
        return cheap_controls(self.trained.sae, self.context.train_rows, self.context.seed)

    @cached_property
    def controls(self) -> dict[str, tuple[Context, SAE]]:
        """Every control with its rows: the run's own, except for the random-weights model."""
        out: dict[str, tuple[Context, SAE]] = {}
        for name in (*CHEAP, *self.control_runs):
            if name in self.without:
                continue
            context = self._control_context(name)
            if name in self.control_runs:
                out[name] = (context, store.load(self.control_runs[name], device=self.trained.sae.W_dec.device))
            else:
                out[name] = (context, self.cheap[name])
        return out

    def _control_context(self, name: str) -> Context:
        return self._other_model if name == "random-model" else self.context

    @cached_property
    def _other_model(self) -> Context:
        folder = self.control_runs["random-model"]
        return open_context(folder, self.context.suite, seed=self.context.seed, display=self.display)

    def all(self, *, again: bool) -> Evaluated:
        """Run all evaluations, in turn."""
        found: dict[str, EvalResult] = {}
        refused = {e.name: why for e in self.evaluations if (why := e.unfit(self.trained)) is not None}
        able = [e for e in self.evaluations if e.name not in refused]
        there = {} if again else {e.name: old for e in able if (old := self._there(e)) is not None}
        open_ = [e for e in able if e.name not in there]
        total = sum(self._cost(e) * (1 + len(self._names(e))) for e in open_)
        with self.display.task("evaluating", max(1, total), unit="parts") as task:
            self._other_model_first(open_, task)
            for evaluation in able:
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
                    self._write(found[name])
        return Evaluated(self.trained.folder, found, refused, tuple(there))

    def _write(self, found: EvalResult) -> None:
        """Write a result into the run; the JSON comes last, so that its presence means everything is there."""
        features.write(self.trained.folder, found.eval, found.found.features, weights_of(self.trained.folder))
        result.write(found, self.trained.folder)

    def _other_model_first(self, evaluations: Sequence[Evaluation], task: Task) -> None:
        """Measure the random-model control first, so that only one language model is in memory at a time."""
        mine = [e for e in evaluations if "random-model" in self._names(e)]
        for evaluation in mine:
            try:
                self.measured["random-model", evaluation.name] = self._control(evaluation, "random-model", task)
            except SaescopeError as error:
                self.measured["random-model", evaluation.name] = Found({}, notes=(f"Not measured: {error}",))
        self.__dict__.pop("_other_model", None)
        if mine:
            self.controls.pop("random-model", None)

    def _measured(self, evaluation: Evaluation, task: Task) -> EvalResult:
        """Run one evaluation on the run and on each control."""
        settings, controls = evaluation.settings(self.context.suite), self._names(evaluation)
        self._prepare(controls)
        own = self._one(evaluation, "", self.context, self.trained.sae, task)
        others: dict[str, Found] = {}
        for name in controls:
            try:
                others[name] = self._control(evaluation, name, task)
            except SaescopeError as error:
                others[name] = Found({}, notes=(f"Not measured: {error}",))
        references = evaluation.references(self.context, settings) if evaluation.references else {}
        return self._result(evaluation, self.trained, self.inputs(evaluation), own, others, references)

    def _prepare(self, controls: Sequence[str]) -> None:
        """Tell the context which coders are still to be measured on its rows."""
        here = [self.controls[name] for name in controls if name in self.controls and not self._known(name)]
        self.context.coders = [self.context.sae, *(sae for where, sae in here if where is self.context)]

    def _control(self, evaluation: Evaluation, name: str, task: Task) -> Found:
        """Result of an evaluation for a control; a trained control's stored result is reused if the rows are the same."""
        if (name, evaluation.name) in self.measured:
            return self.measured[name, evaluation.name]
        if name not in self.control_runs:
            return self._one(evaluation, name, *self.controls[name], task)
        folder, inputs = self.control_runs[name], self._control_inputs(evaluation, name)
        old = _there(folder, evaluation.name, inputs["id"])
        if old is not None:
            task.advance(self._cost(evaluation))
            return old.found
        context, sae = self.controls[name]
        found = self._one(evaluation, name, context, sae, task)
        trained = open_trained(folder)
        result.write(self._result(evaluation, trained, inputs, found, {}, {}), folder)
        return found

    def _control_inputs(self, evaluation: Evaluation, name: str) -> dict[str, Any]:
        context = self._control_context(name)
        facts = self._facts(evaluation) | {"weights": weights_of(self.control_runs[name]), "rows": context.facts()}
        return _identified({**facts, "controls": {}})

    def _known(self, name: str) -> bool:
        """Whether a trained control already has all results needed."""
        if name not in self.control_runs:
            return False
        return all(
            _there(self.control_runs[name], e.name, self._control_inputs(e, name)["id"]) is not None
            for e in self.evaluations if name in e.controls and e.unfit(self.trained) is None
        )

    def _result(
        self, evaluation: Evaluation, trained: TrainedSAE, inputs: Mapping[str, Any], found: Found,
        others: Mapping[str, Found], references: Mapping[str, result.Metrics],
    ) -> EvalResult:
        lacking = tuple(name for name in evaluation.controls if name not in others)
        name = str(trained.folder.resolve().relative_to(trained_controls.root_of(trained).resolve()))
        return EvalResult(
            evaluation.name, evaluation.title, evaluation.version, name, inputs,
            evaluation.plain_settings(self.context.suite), _sae_facts(trained), found, others, lacking, references)

    def _one(self, evaluation: Evaluation, name: str, context: Context, sae: SAE, task: Task) -> Found:
        """Run an evaluation on one coder, showing progress."""
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
        """The run's stored result with equal inputs, if its per-feature table is there too."""
        if evaluation.per_feature and not features.path_of(self.trained.folder, evaluation.name).is_file():
            return None
        return _there(self.trained.folder, evaluation.name, self.inputs(evaluation)["id"])

    def inputs(self, evaluation: Evaluation) -> dict[str, Any]:
        """Everything that determines a result; opens neither rows nor a model."""
        facts = self._facts(evaluation) | {
            "weights": weights_of(self.trained.folder), "rows": self.context.facts(),
            "controls": {name: weights_of(self.control_runs[name]) if name in self.control_runs else self.context.seed
                         for name in self._names(evaluation)},
        }
        return _identified(facts)

    def _facts(self, evaluation: Evaluation) -> dict[str, Any]:
        suite = self.context.suite
        return {"eval": evaluation.name, "version": evaluation.version, "suite": suite,
                "settings": evaluation.plain_settings(suite), **evaluation.facts(self.context)}

    def _names(self, evaluation: Evaluation) -> list[str]:
        """Controls of an evaluation that are available."""
        there = (*CHEAP, *self.control_runs)
        return [name for name in evaluation.controls if name in there and name not in self.without]

    def _cost(self, evaluation: Evaluation) -> int:
        return max(1, round(PARTS * evaluation.cost[0 if self.context.suite == "quick" else 1]))


def _there(run: Path, name: str, digest: str) -> EvalResult | None:
    """A run's stored result with this input digest."""
    path = run / result.FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    try:
        old = result.read(path)
    except SaescopeError:  # another version, or altered: recompute it
        return None
    return old if old.inputs.get("id") == digest else None


def _identified(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts in JSON types, with their digest as `id`."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return {"id": hashlib.sha256(text.encode()).hexdigest(), **json.loads(text)}


def _sae_facts(trained: TrainedSAE) -> dict[str, Any]:
    sae, provenance = trained.sae, trained.sae.provenance
    return {
        **sae.config.model_dump(mode="json", by_alias=True), "d_in": sae.d_in, "d_out": sae.d_out,
        "hook_name": provenance.get("hook_name"), "model_name": provenance.get("model_name"),
        "data_seed": provenance.get("config", {}).get("data", {}).get("seed"),
    }
