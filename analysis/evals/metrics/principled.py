"""Principled tests of a dictionary on tasks with known attributes (Makelov, Lange & Nanda 2405.08366): IOI and agreement.

At one site, for each task:

    sufficiency     mean metric with reconstructions in place of all activations, as a share of the clean metric
    necessity       1 − |m_mean − m| / |m_mean − m_clean|; m: activations are the mean of their position plus the
                    reconstruction error; m_mean: the mean alone
    variance        variance explained by the reconstruction at the edited position

For each edit, at the position where patching the counterfactual's activation has the largest effect:

    agreement_k     share of prompts in which removing k features and adding k (`principled.control`) leads to the same
                    preferred answer as the ground-truth edit, which patches the whole activation
    effect_k        change of the preference, relative to the ground-truth edit
    weight_k        share of the reconstructions made up by the edited features; smaller means more surgical
    side_effects_k  KL(ground truth ‖ edited) of the next token
    placebo         the same with random directions of the same norm as the largest edit

    f1              best feature's F1 with each attribute (any union of values), at the edited position, averaged over
                    attributes; `occluded` and `split` as in `principled.attributes`

References: supervised dictionaries with MSE codes, with mean codes (difference in means), and no edit. The paper's
cross-sections are attention heads; here it is the residual stream, or whatever the SAE reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from analysis.evals.common.context import Context
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.intervals import metric, plain, ratio
from analysis.evals.common.result import Direction, Found, Metric, Metrics, Units
from analysis.evals.principled.attributes import best_union, counts, n_parts, occluded
from analysis.evals.principled.control import Edit, active, greedy_edit, norm_matched
from analysis.evals.principled.prepared import Edited, Outcome, Prepared, outcome, prepare
from analysis.evals.principled.supervised import variance_explained
from analysis.evals.principled.tasks import known_tasks
from analysis.evals.probes.sparse import matrix
from sae.coder import Coder
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Settings:
    """Numbers of prompts, and of features edited."""

    ks: tuple[int, ...] = (1, 4)
    n_train: int = 96
    n_test: int = 12
    n_place: int = 3


@dataclass(frozen=True)
class _All:
    tasks: list[Prepared]
    notes: tuple[str, ...]


def _prepare(context: Context, settings: Settings) -> _All:
    """Prepare every task that the model can do.

    Raises:
        SaescopeError: it can do none.
    """
    found, notes = [], []
    for task in known_tasks(context.model):
        try:
            found.append(prepare(
                task, context.model, context.trained.site, settings.n_train, settings.n_test, settings.n_place,
                context.seed))
        except SaescopeError as error:
            notes.append(str(error))
    if not found:
        raise SaescopeError(" ".join(notes))
    return _All(found, tuple(notes))


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Run all tests on a dictionary."""
    prepared = context.once("principled", partial(_prepare, context, settings))
    metrics: dict[str, Mapping[str, Metric]] = {}
    details: list[Mapping[str, Any]] = []
    for number, one in enumerate(prepared.tasks):
        coded = _Coded(one, coder)
        with one.run.replayed():
            metrics[one.task.name] = _approximation(one, coded.x_hat())
            for edit in one.edits:
                metrics[f"{one.task.name}: {edit.name}"] = _control(context, one, edit, coded, settings.ks)
        interpretable, records = _interpretability(one, coded)
        metrics[f"{one.task.name}: features"] = interpretable
        details += records
        context.progress((number + 1) / len(prepared.tasks))
    return Found(metrics, _units(prepared.tasks), details, notes=prepared.notes)


def _units(tasks: list[Prepared]) -> dict[str, Units]:
    return {one.task.name: Units("prompt", np.arange(len(one.test)), np.ones(len(one.test))) for one in tasks}


class _Coded:
    """A dictionary applied to a task: codes of the test prompts, and of source and target of each edit."""

    def __init__(self, prepared: Prepared, coder: Coder) -> None:
        self.prepared, self.coder = prepared, coder
        W = coder.W_dec.detach().double().cpu()
        self.W = (W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()

    def x_hat(self) -> Float[Tensor, "n n_ctx d_out"]:
        """Reconstructions of all activations."""
        rows = self.prepared.rows
        flat = rows.x.reshape(-1, rows.x.shape[-1]).to(self.coder.W_dec.device)
        return self.coder.decode(self.coder.encode(flat)).float().cpu().reshape(rows.target.shape)

    def codes(self, x: Float[Tensor, "n d_in"]) -> Any:
        """Codes as a scipy CSR array."""
        return matrix(self.coder.encode(x.to(self.coder.W_dec.device)))

    def edits(self, edit: Edited, k: int) -> list[Edit]:
        """For each prompt, the edit that removes at most k features and adds at most k."""
        here = self.prepared.rows.x[:, edit.at], self.prepared.rows.target[:, edit.at].double().numpy()
        source, target = self.codes(here[0]), self.codes(edit.rows.x)
        there = edit.rows.target.double().numpy()
        return [
            greedy_edit(here[1][i], there[i], active(source, i, self.W), active(target, i, self.W), k)
            for i in range(len(there))
        ]


# -- approximation ----------------------------------------------------------------------------------------------------


def _approximation(one: Prepared, x_hat: Float[Tensor, "n n_ctx d_out"]) -> dict[str, Metric]:
    """Sufficiency and necessity of reconstructions at all positions."""
    sufficient = one.metric(one.run.logits(x_hat))
    necessary = one.metric(one.run.logits(one.means() + one.rows.target - x_hat))
    ones = np.ones(len(one.test))
    sums = np.stack([part.double().numpy() for part in (one.mean, necessary, one.clean)], 1)
    at = [edit.at for edit in one.edits]
    variance = [
        variance_explained(one.rows.target[:, p].double().numpy(), x_hat[:, p].double().numpy()) for p in sorted(set(at))]
    return {
        "sufficiency": ratio(
            sufficient.double().numpy(), one.clean.double().numpy(), ones, unit="share", direction="higher",
            formula="sufficiency: metric under reconstructions / clean metric", of=one.task.name),
        "necessity": metric(
            _necessity, sums, ones, unit="share", direction="higher", of=one.task.name,
            formula="necessity: 1 − |m_mean − m| / |m_mean − m_clean|, m of mean plus error"),
        "variance": plain(float(np.mean(variance)), unit="share", direction="higher", n=len(one.test),
                          formula="variance of the prompts' activations explained at the edited positions"),
    }


def _necessity(sums: Float[np.ndarray, "n_draws three"]) -> Float[np.ndarray, " n_draws"]:
    return np.asarray(1 - np.abs(sums[:, 0] - sums[:, 1]) / np.abs(sums[:, 0] - sums[:, 2]))


# -- control ----------------------------------------------------------------------------------------------------------


def _control(
    context: Context, one: Prepared, edit: Edited, coded: _Coded, ks: tuple[int, ...]
) -> dict[str, Metric]:
    out: dict[str, Metric] = {}
    change = np.zeros((len(one.test), one.rows.target.shape[-1]))
    for k in ks:
        made = coded.edits(edit, k)
        change = np.stack([each.change for each in made])
        out |= _figures(one, edit, outcome(one, edit, change), f"_k{k}", f"{k} features out and {k} in")
        weights = np.array([each.weight for each in made])
        out[f"weight_k{k}"] = _mean(one, weights, "share", "lower", f"weight of the features changed, {k} out and {k} in")
    placebo = outcome(one, edit, norm_matched(change, context.seed))
    return out | _figures(one, edit, placebo, "_placebo", f"random directions as long as {max(ks)} features", judged=False)


def _figures(
    one: Prepared, edit: Edited, found: Outcome, ending: str, what: str, *, judged: bool = True
) -> dict[str, Metric]:
    better: Direction = "higher" if judged else "none"
    ground = (edit.after - edit.before).double().numpy()
    return {
        f"agreement{ending}": _mean(one, found.agrees, "share", better, f"edit agreement with the ground truth, {what}"),
        f"effect{ending}": ratio(
            found.moved, ground, np.ones(len(ground)), unit="share", direction=better, of=one.task.name,
            formula=f"preference moved / moved by the ground truth, {what}"),
        f"side_effects{ending}": _mean(
            one, found.side_effects, "nats", "lower" if judged else "none", f"KL(ground truth ‖ edited), {what}"),
    }


def _mean(one: Prepared, values: Float64[np.ndarray, " n"], unit: str, direction: Direction, formula: str) -> Metric:
    ones = np.ones(len(values))
    return ratio(values, ones, ones, unit=unit, direction=direction, formula=formula, of=one.task.name)


# -- interpretability -------------------------------------------------------------------------------------------------


def _interpretability(one: Prepared, coded: _Coded) -> tuple[dict[str, Metric], list[Mapping[str, Any]]]:
    """How well features match attributes, at the edited positions, over training and test prompts."""
    values = np.concatenate([one.train_values, one.test.values])
    best, hidden, parts = [], 0, []
    records: list[Mapping[str, Any]] = []
    for at in sorted({edit.at for edit in one.edits}):
        x = torch.cat([one.train_rows.x[:, at], one.rows.x[:, at]])
        is_active = np.asarray((coded.codes(x) != 0).todense())
        supervised = one.supervised(at, "mse")
        norms = np.array([
            np.sqrt(np.square(code[column]).sum(1).mean())
            for code, column in zip(supervised.codes, one.train_values.T, strict=True)])
        f1 = np.zeros(len(norms))
        for a, (name, n_values) in enumerate(zip(one.task.attributes, one.task.n_values, strict=True)):
            together = counts(is_active, values[:, a], n_values)
            of_value = np.bincount(values[:, a], minlength=n_values).astype(np.float64)
            unions = [best_union(column, of_value) for column in together.T]
            feature = int(np.argmax([score for score, _ in unions]))
            f1[a] = unions[feature][0]
            split = n_parts(is_active, values[:, a] == 1) if n_values == 2 else None
            parts += [split] if split is not None else []
            records.append({
                "task": one.task.name, "position": at, "attribute": name, "code_norm": float(norms[a]), "f1": float(f1[a]),
                "feature": feature, "n_values": len(unions[feature][1]), "n_parts": split})
        best += f1.tolist()
        hidden += len(occluded(norms, f1))
    n = len(values)
    return {
        "f1": plain(float(np.mean(best)), unit="F1", direction="higher", n=n,
                    formula="F1 of the best feature with an attribute (unions of a few values), mean over attributes"),
        "occluded": plain(float(hidden), unit="attributes", direction="lower", n=n,
                          formula="attributes no feature stands for, though one does for an attribute of longer codes"),
        "parts": plain(float(np.mean(parts)) if parts else None, unit="features", direction="lower", n=n,
                       formula="features of precision 0.9 that cover 0.9 of a binary attribute, mean where they do"),
    }, records


# -- what is attainable -----------------------------------------------------------------------------------------------


def references(context: Context, settings: Settings) -> Mapping[str, Metrics]:
    """Supervised dictionaries, and no edit."""
    prepared = context.once("principled", partial(_prepare, context, settings))
    out: dict[str, dict[str, Mapping[str, Metric]]] = {"supervised": {}, "difference in means": {}, "no edit": {}}
    for one in prepared.tasks:
        with one.run.replayed():
            for name, kind in (("supervised", "mse"), ("difference in means", "mean")):
                out[name][one.task.name] = _approximation(one, one.reconstruction(kind))
                for edit in one.edits:
                    change = _supervised_change(one, edit, kind)
                    found = outcome(one, edit, change)
                    out[name][f"{one.task.name}: {edit.name}"] = _as_all(one, edit, found, settings.ks, f"{kind} codes")
            for edit in one.edits:
                found = outcome(one, edit, None)
                out["no edit"][f"{one.task.name}: {edit.name}"] = _as_all(one, edit, found, settings.ks, "no edit")
    return out


def _supervised_change(one: Prepared, edit: Edited, kind: str) -> Float64[np.ndarray, "n d_out"]:
    """Replace the code of each changed attribute by the new one."""
    dictionary = one.supervised(edit.at, kind)
    old, new = one.test.values, edit.target.values
    return np.sum([dictionary.edit(a, old[:, a], new[:, a]) for a in range(old.shape[1])], axis=0)


def _as_all(one: Prepared, edit: Edited, found: Outcome, ks: tuple[int, ...], what: str) -> dict[str, Metric]:
    """The same metrics for every k, for display next to the dictionary's."""
    return {name: value for k in ks for name, value in _figures(one, edit, found, f"_k{k}", what).items()}


EVALUATION = Evaluation(
    "principled", "Principled tests", 1, Settings(), Settings((1, 2, 4), n_train=480, n_test=60, n_place=12), run,
    references=references, cost=(10.0, 90.0),
)
