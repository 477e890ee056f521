"""k-sparse probing on a user's labelled dataset (`sae eval RUN --labelled SOURCE`).

An example is a document: the mean over its first tokens, with each document in its own context (SAEBench 2503.09532). Half
of each class's documents are for fitting probes, the other half for testing; the SAE may have been trained on either.
Probes, score, controls and skyline are those of `probing`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from analysis.evals.common.context import Context
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.result import Found, Metrics, Units
from analysis.evals.metrics.probing import known, labels_of, scored
from analysis.evals.probes.concepts import concepts
from analysis.evals.probes.labelled import LabelledText, Sample
from analysis.evals.probes.sparse import matrix
from analysis.evals.probes.tasks import Examples, Task
from analysis.trained import TrainedSAE
from sae.coder import Coder
from sae.errors import SaescopeError
from training.model.language_model import Model

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """The dataset, and how much of it is used."""

    source: str
    text: str
    label: str
    subset: str | None
    split: str | None
    n_documents: int
    n_tokens: int
    """Maximum tokens per document, including BOS."""
    ks: tuple[int, ...] = (1, 2, 5)


def evaluation_of(labelled: LabelledText) -> Evaluation:
    """The evaluation that probes for a dataset's labels; nothing is read yet."""
    fields = (labelled.source, labelled.text, labelled.label, labelled.subset, labelled.split)
    quick, full = Settings(*fields, n_documents=600, n_tokens=128), Settings(*fields, n_documents=4000, n_tokens=256)

    prefix = f"{labelled.name.replace('-', '_').lower()}_"

    def run(context: Context, coder: Coder, settings: Settings) -> Found:
        sample = labelled.sample.first(settings.n_documents)
        means = _means(context, coder, sample, settings)
        task, codes = _task(sample, settings), means.codes[id(coder)][1]
        sides = codes[sample.fitted], codes[~sample.fitted]
        metrics, details = scored(task, *sides, settings.ks)
        features = {}
        if coder is context.sae:
            features = concepts([labels_of(task, *sides)], task.name, prefix, labelled.label)
        return Found({"labels": metrics}, {"rows": task.test.units}, details, features, sample.notes)

    def skyline(context: Context, settings: Settings) -> Mapping[str, Metrics]:
        sample = labelled.sample.first(settings.n_documents)
        means, fitted = _means(context, context.sae, sample, settings).activations, torch.from_numpy(sample.fitted)
        return {"activation probe": {"labels": known(_task(sample, settings), means[fitted], means[~fitted], settings.ks)}}

    def unfit(trained: TrainedSAE) -> str | None:
        try:
            trained.model_facts()
            _ = labelled.sample
        except SaescopeError as error:
            return str(error)
        return None

    return Evaluation(
        labelled.name, f"Sparse probing for {labelled.label} of {labelled.source}", 1, quick, full, run, references=skyline,
        unfit=unfit, per_feature=True, facts=lambda _: {"sample": labelled.sample.sha256}, cost=(15.0, 120.0),
    )


def _task(sample: Sample, settings: Settings) -> Task:
    """The task: each class's documents against all others."""
    sides = [_examples(sample.label[side]) for side in (sample.fitted, ~sample.fitted)]
    return Task(f"{settings.label} of {settings.source}", sample.classes, *sides)


def _examples(label: Int64[np.ndarray, " n"]) -> Examples:
    from scipy.sparse import eye_array

    number, ones = np.arange(len(label)), np.ones(len(label))
    return Examples(number, eye_array(len(label), format="csr"), label, number, Units("document", number, ones))


@dataclass
class Means:
    """Mean over each document's tokens: activations `[n_documents, d_in]`, and codes by coder, as scipy CSR arrays."""

    activations: Tensor
    codes: dict[int, tuple[Coder, Any]]


def _means(context: Context, coder: Coder, sample: Sample, settings: Settings) -> Means:
    """Means for a coder, and for all others still to be measured, so that the model runs only once."""
    found = context.once(f"means of {settings} of {sample.sha256}", lambda: Means(torch.zeros(0), {}))
    if id(coder) not in found.codes:
        coders = [coder, *(one for one in context.coders if one is not coder and id(one) not in found.codes)]
        parts, order = [], []
        n_done = 0
        for document, means, codes in _batches(context, coders, sample, settings):
            order.append(document)
            parts.append((means, codes))
            n_done += len(document)
            context.progress(n_done / len(sample.text))
        place = np.argsort(np.concatenate(order))
        found.activations = torch.cat([means for means, _ in parts])[torch.from_numpy(place)]
        found.codes |= {
            id(one): (one, _stacked([codes[i] for _, codes in parts])[place]) for i, one in enumerate(coders)}
    return found


def _stacked(parts: list[Any]) -> Any:
    from scipy.sparse import vstack

    return vstack(parts, format="csr")


@torch.no_grad()
def _batches(
    context: Context, coders: list[Coder], sample: Sample, settings: Settings
) -> Iterator[tuple[Int64[np.ndarray, " n"], Tensor, list[Any]]]:
    """Batches of documents of similar length: indices, mean activations, and mean codes of each coder."""
    trained, model = context.trained, context.model
    hooks = list(dict.fromkeys((*trained.site.hooks, *trained.limits)))
    for document, tokens, there in _padded(model, sample.text, min(settings.n_tokens, model.n_ctx_max)):
        acts = {hook: rows.flatten(0, 1) for hook, rows in model.activations(tokens, hooks).items()}
        kept = trained.kept(tokens.flatten(), acts) & torch.from_numpy(there.reshape(-1))
        rows = trained.rows({hook: acts[hook][kept.to(acts[hook].device)] for hook in trained.site.hooks})
        mean = _mean(kept.numpy().reshape(there.shape))
        codes = [mean @ matrix(coder.encode(rows.x.to(coder.W_dec.device)).csr()) for coder in coders]
        yield document, torch.from_numpy(mean @ rows.x.double().cpu().numpy()), codes


def _padded(
    model: Model, texts: tuple[str, ...], n_tokens: int
) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[Tensor, "n n_ctx"], Bool[np.ndarray, "n n_ctx"]]]:
    """The first tokens of documents, one document per sequence, right-padded (causal models can't see the padding)."""
    ids = model.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    begin = [model.bos_id] if model.prepend_bos and model.bos_id is not None else []
    sequences = [[*begin, *one][:n_tokens] for one in ids]
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    while order:
        # sorted by length, so the last one decides
        n = next(n for n in range(len(order), 0, -1) if n == 1 or n * len(sequences[order[n - 1]]) <= BATCH_TOKENS)
        some, order = order[:n], order[n:]
        lengths = np.array([len(sequences[i]) for i in some])
        tokens = torch.zeros(n, max(1, lengths.max()), dtype=torch.long)
        for row, i in zip(tokens, some, strict=True):
            row[: len(sequences[i])] = torch.tensor(sequences[i])
        yield np.array(some, dtype=np.int64), tokens, np.arange(tokens.shape[1]) < lengths[:, None]


def _mean(kept: Bool[np.ndarray, "n n_ctx"]) -> Any:
    """Averaging matrix `[n, n_kept]` over each document's kept rows; a document without any has mean 0."""
    from scipy.sparse import csr_array

    document = np.nonzero(kept)[0]
    count: Float64[np.ndarray, " n"] = np.bincount(document, minlength=len(kept)).astype(np.float64)
    return csr_array((1 / count[document], (document, np.arange(len(document)))), shape=(len(kept), len(document)))
