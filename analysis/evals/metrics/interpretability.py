"""Interpretability: scores of automatic labels, and token entropy.

Labels are rules on the surrounding words (`analysis.labels.automatic`), built on training documents and scored on held-out
ones, without a language model to write or judge them. A score alone means little: SAEs on models with random weights also
have features that are easy to label, since tokens are (2501.17727). So look at the gap to the random-model SAE and the
other controls. `baseline` is the score of another feature's label on the same examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from analysis.evals.common.context import Context, Rows, encoded
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.intervals import plain, ratio
from analysis.evals.common.result import Direction, Found, Metric, PerFeature
from analysis.evals.interpretability.coded_text import CodedText, Part
from analysis.evals.interpretability.scores import detection, entropies, entropy_by_chance, fuzzing
from analysis.evals.probes.sparse import matrix
from analysis.labels.automatic import Explainer
from analysis.vocabulary import Vocabulary
from sae.coder import Coder
from sae.errors import SaescopeError
from training.model.token_bytes import token_bytes

LEAST_FIRES = 20


@dataclass(frozen=True)
class Settings:
    """Number of features to label."""

    n_features: int = 64


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Score the labels of a sample of features, and measure the entropy of all that are active often enough."""
    if context.rows.token is None or context.train_rows.token is None:
        raise SaescopeError(
            f"{context.trained.folder.name} was trained on activations without text, so there are no words to label its "
            "features with.")
    text = _coded_text(context, coder)
    token = np.concatenate([context.train_rows.token, context.rows.token])
    entropy, of_features = _entropy(text, token, context.seed)
    labelled, details = _labelled(context, text, settings.n_features)
    return Found({"labels": labelled, "tokens": entropy}, {}, details, of_features | _scores(details, coder.d_sae))


def _coded_text(context: Context, coder: Coder) -> CodedText:
    made_from = _part(context, context.train_rows, encoded(coder, context.train_rows.x))
    judged_on = _part(context, context.rows, context.code(coder))
    vocabulary = context.once("vocabulary", lambda: Vocabulary(token_bytes(context.model.tokenizer)))
    return CodedText(made_from, judged_on, vocabulary)


def _part(context: Context, rows: Rows, code: Any) -> Part:
    tokens = context.data_of(rows).tokens
    assert tokens.tokens is not None
    seqs, place = np.unique(rows.seq, return_inverse=True)
    return Part(tokens.tokens[seqs], place * tokens.n_ctx + rows.position, matrix(code))


def _labelled(
    context: Context, text: CodedText, n_features: int
) -> tuple[dict[str, Metric], list[Mapping[str, Any]]]:
    explainer = Explainer(text, seed=context.seed)  # type: ignore[arg-type]
    known = _judgeable(text)
    features = np.sort(np.random.default_rng(context.seed).permutation(known)[:n_features]).tolist()
    records: list[Mapping[str, Any]] = []
    for done, feature in enumerate(features):
        other = explainer._other(feature)
        scores = {
            "detection": detection(explainer, feature, feature), "detection_baseline": detection(explainer, feature, other),
            "fuzzing": fuzzing(explainer, feature, feature), "fuzzing_baseline": fuzzing(explainer, feature, other)}
        records.append({"feature": feature, "label": explainer.text(feature, explainer.rule(feature)), **scores})
        context.progress((done + 1) / len(features))
    d_sae = text.rows.shape[1]
    metrics = {name: _mean(records, name) for name in ("detection", "fuzzing", "detection_baseline", "fuzzing_baseline")}
    metrics["share_judged"] = plain(
        len(known) / d_sae, unit="share", direction="none", n=d_sae,
        formula="features with enough rows to be labelled and judged")
    return metrics, records


def _judgeable(text: CodedText) -> Int64[np.ndarray, " n"]:
    """Features with enough active rows to build a label and, in other documents, enough contexts to score it."""
    codes = text.csc()
    feature = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    judged = text.arrays["unit"].reshape(-1)[codes.indices] == 1
    made = np.bincount(feature[~judged], minlength=codes.shape[1])
    contexts = np.unique(np.stack([feature[judged], codes.indices[judged] // text.n_ctx]), axis=1)[0]
    return np.flatnonzero((made >= 8) & (np.bincount(contexts, minlength=codes.shape[1]) >= 4)).astype(np.int64)


def _scores(records: list[Mapping[str, Any]], d_sae: int) -> dict[str, PerFeature]:
    """Per-feature scores of the labelled features."""
    out = {}
    for name in ("detection", "fuzzing"):
        values = np.full(d_sae, np.nan)
        for record in records:
            values[record["feature"]] = np.nan if record[name] is None else record[name]
        formula = f"balanced accuracy of its contrast label by {name}, on held-out text; of a sample of features"
        out[name] = PerFeature(values, name.capitalize(), "share", "higher", formula)
    return out


def _mean(records: list[Mapping[str, Any]], name: str) -> Metric:
    values = np.array([record[name] for record in records if record[name] is not None], dtype=np.float64)
    direction: Direction = "none" if name.endswith("baseline") else "higher"
    formula = f"balanced accuracy of contrast labels by {name.replace('_', ', ')}, mean over features"
    if not len(values):
        return plain(None, unit="share", direction=direction, formula=formula, n=0)
    ones = np.ones(len(values))
    # features of two SAEs can't be paired
    return replace(ratio(values, ones, ones, unit="share", direction=direction, formula=formula), pseudo=None)


def _entropy(
    text: CodedText, token: Int64[np.ndarray, " n_rows"], seed: int
) -> tuple[dict[str, Metric], dict[str, PerFeature]]:
    codes = text.rows
    counts = np.diff(codes.indptr)
    feature = np.repeat(np.arange(codes.shape[1]), counts)
    entropy = entropies(feature, token[codes.indices], codes.shape[1])
    often = counts >= LEAST_FIRES
    share = np.full(len(entropy), np.nan)
    chance = entropy_by_chance(token, counts[often].astype(np.int64), seed) if often.any() else np.zeros(0)
    share[often] = entropy[often] / chance.clip(min=1e-12)
    entropy[~often] = np.nan
    make = partial(plain, direction="none", n=int(often.sum()))
    mean = partial(_mean_of, often=often)
    return {
        "entropy": make(mean(entropy), unit="bits", formula="H(token | active), mean over features active in 20 rows"),
        "entropy_share": make(mean(share), unit="share", formula="H(token | active) / that of as many random rows, mean"),
    }, {
        "token_entropy": PerFeature(
            entropy, "Token entropy", "bits", "none", f"H(token | active), of features active in {LEAST_FIRES} rows"),
        "token_entropy_share": PerFeature(
            share, "Of random", "share", "none", "H(token | active) / that of as many random rows: 1 tells no token"),
    }


def _mean_of(values: Float64[np.ndarray, " d_sae"], often: Any) -> float | None:
    return float(values[often].mean()) if often.any() else None


EVALUATION = Evaluation(
    "interpretability", "Interpretability", 1, Settings(), Settings(n_features=300), run, per_feature=True,
    cost=(6.0, 25.0),
)
