"""SHIFT on a spurious attribute planted in real text (Marks et al. 2403.19647, §5): `analysis.circuits.shift`.

Each seed has its own excerpts, people, SAEs, probe and circuit. The judge is a rule that replaces a person inspecting where
a feature fires: at least half of its activation on unlabelled texts is on a name or a pronoun. Rows are methods; the
oracle, skylines and deletion use information that SHIFT doesn't have.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from analysis.circuits.model import CircuitModel
from analysis.circuits.shift.effects import Candidate
from analysis.circuits.shift.judge import activations, giveaway_shares, top_tokens, write_sheet
from analysis.circuits.shift.planted import Planted, planted
from analysis.circuits.shift.shift import Sets, shift
from analysis.circuits.shift.texts import Labelled, Text, labelled
from analysis.reproduce.jobs import Job
from analysis.reproduce.shared_stream import train_together
from analysis.reproduce.tables import Row
from sae.io.files import write_bytes
from sae.section import Section
from training.display import Display
from training.model.language_model import Model
from training.model.load import load_model


class ShiftFields(Section):
    """Section `shift` of the experiment's config."""

    hook: str
    """Hook the probe reads."""
    n_train: int = Field(default=800, gt=0)
    """Number of biased, and of balanced, texts."""
    n_test: int = Field(default=400, gt=0)
    """Number of test texts."""
    n_ctx: int = Field(default=48, gt=0)
    """Tokens per text."""
    n_texts: int = Field(default=3000, gt=0)
    """Unlabelled texts in the SAEs' training corpus."""
    weight: float = Field(default=10.0, gt=0)
    """Sampling weight of these texts relative to standard-library excerpts."""
    n_candidates: int = Field(default=60, gt=0)
    """Number of features in the circuit."""
    n_effect_texts: int = Field(default=128, gt=0)
    """Texts for estimating effects."""
    n_steps: int = Field(default=4, gt=0)
    """Steps of integrated gradients."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Minimum share of a feature's activation on giveaway tokens for the judge to call it spurious."""


def run(job: Job) -> list[Row]:
    """One row per method."""
    fields = dict(job.fields)
    options = ShiftFields.model_validate(fields.pop("shift"))
    texts = planted(max(options.n_texts, options.n_train), options.n_test, job.seed)
    fields["corpus"] = {**fields["corpus"], "sources": _sources(fields, texts, job.folder, options)}
    trained = train_together(replace(job, fields=fields))
    model = load_model(str(fields["model"]))
    circuit = CircuitModel(model, {config.site: result.sae for config, result in trained})
    sets, unlabelled = _sets(texts, model, options)
    display = Display(quiet=job.quiet)
    found = shift(
        circuit, options.hook, sets, lambda some: _judge(circuit, options, unlabelled, some, job.folder),
        n_candidates=options.n_candidates, n_effect_texts=options.n_effect_texts, n_steps=options.n_steps, seed=job.seed,
        progress=lambda what: display.say(f"seed {job.seed}: {what}"),
    )
    return [{"setting": row.pop("method"), **row} for row in found.rows]


def _sources(fields: dict[str, Any], texts: Planted, folder: Path, options: ShiftFields) -> list[Any]:
    """The corpus plus such texts, with the training people and modules, unlabelled and uncorrelated."""
    path = folder / "texts.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": one.text}) + "\n" for one in texts.balanced[: options.n_texts]]
    write_bytes(path, "".join(lines).encode())
    return [*fields["corpus"]["sources"], {"source": f"jsonl:{path}", "weight": options.weight}]


def _sets(texts: Planted, model: Model, options: ShiftFields) -> tuple[Sets, Labelled]:
    def read(some: list[Text]) -> Labelled:
        return labelled(some, model, options.n_ctx)

    biased, test = texts.biased[: options.n_train], texts.test
    bare = tuple(read([one.without_giveaways() for one in some]) for some in (biased, test))
    sets = Sets(read(biased), read(texts.balanced[: options.n_train]), read(test), (bare[0], bare[1]))
    return sets, read(texts.balanced[-300:])


def _judge(
    circuit: CircuitModel, options: ShiftFields, unlabelled: Labelled, candidates: Any, folder: Path
) -> list[Candidate]:
    acts = activations(circuit, unlabelled, candidates, options.hook)
    decode = circuit.model.tokenizer.decode
    write_sheet(folder / "sheet.csv", candidates, [top_tokens(one, unlabelled.tokens, decode) for one in acts])
    shares = giveaway_shares(acts, unlabelled.giveaway)
    return [one for one, share in zip(candidates, shares.tolist(), strict=True) if share >= options.share]
