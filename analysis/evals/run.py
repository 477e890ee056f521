"""Evaluations of a run: each on the SAE and on its controls, on the same rows, written one by one into runs/NAME/evals/.

A result whose inputs are the same is not measured again; those of trained controls lie in the controls' own runs, so that
runs which share a control share its figures. One evaluation that cannot be made says why, in one sentence, and the others
go on.
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
    run: str | Path, suite: Suite = "quick", only: Sequence[str] = (), *, labelled: LabelledText | None = None,
    controls: bool = False, again: bool = False, seed: int = SEED, without: Sequence[str] = (),
    display: Display | None = None,
) -> Evaluated:
    """Evaluate a run.

    Args:
        run: its folder.
        suite: how much is looked at.
        only: names of evaluations; none means all, or with `labelled` no other.
        labelled: a dataset whose labels are probed for.
        controls: train the controls of its site first, where they are not there yet.
        again: measure anew what is there.
        seed: of every draw, and of the controls.
        without: controls that are not wanted; results name them as lacking.
        display: shows progress.

    Raises:
        SaescopeError: no such run or evaluation, or a training of controls that fails.
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
    """The evaluations of one run."""

    context: Context
    evaluations: Sequence[Evaluation]
    without: tuple[str, ...]
    display: Display
    measured: dict[tuple[str, str], Found] = field(default_factory=dict)
    """What was found of controls before their turn, by control and evaluation."""

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
        """Every evaluation, in turn."""
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
        """Into the run; the result last, so that where it is there all is."""
        features.write(self.trained.folder, found.eval, found.found.features, weights_of(self.trained.folder))
        result.write(found, self.trained.folder)

    def _other_model_first(self, evaluations: Sequence[Evaluation], task: Task) -> None:
        """Everything about the control of another model, so that the two models need not lie in memory together."""
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
        """One evaluation, of the run and of each control."""
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
        """Tell the context of all that are going to be measured on its rows and have not been yet."""
        here = [self.controls[name] for name in controls if name in self.controls and not self._known(name)]
        self.context.coders = [self.context.sae, *(sae for where, sae in here if where is self.context)]

    def _control(self, evaluation: Evaluation, name: str, task: Task) -> Found:
        """What an evaluation finds of a control; of a trained one what is there already, if it is of the same rows."""
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
        """Whether all that is to be measured of a trained control is there."""
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
        """The result of equal inputs that lies in the run, with what it says of features."""
        if evaluation.per_feature and not features.path_of(self.trained.folder, evaluation.name).is_file():
            return None
        return _there(self.trained.folder, evaluation.name, self.inputs(evaluation)["id"])

    def inputs(self, evaluation: Evaluation) -> dict[str, Any]:
        """All that determines a result; opens no rows and no model."""
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
        """The controls that an evaluation has here."""
        there = (*CHEAP, *self.control_runs)
        return [name for name in evaluation.controls if name in there and name not in self.without]

    def _cost(self, evaluation: Evaluation) -> int:
        return max(1, round(PARTS * evaluation.cost[0 if self.context.suite == "quick" else 1]))


def _there(run: Path, name: str, digest: str) -> EvalResult | None:
    """A run's result with this digest of its inputs."""
    path = run / result.FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    try:
        old = result.read(path)
    except SaescopeError:  # of another version, or altered: it is made anew
        return None
    return old if old.inputs.get("id") == digest else None


def _identified(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON has them, and their digest as `id`."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return {"id": hashlib.sha256(text.encode()).hexdigest(), **json.loads(text)}


def _sae_facts(trained: TrainedSAE) -> dict[str, Any]:
    sae, provenance = trained.sae, trained.sae.provenance
    return {
        **sae.config.model_dump(mode="json", by_alias=True), "d_in": sae.d_in, "d_out": sae.d_out,
        "hook_name": provenance.get("hook_name"), "model_name": provenance.get("model_name"),
        "data_seed": provenance.get("config", {}).get("data", {}).get("seed"),
    }
