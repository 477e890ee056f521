"""Bidirectionality: are features used with both signs, and do the two signs mean opposite things?

There is no published metric; these are our own (see `bidirectional.halves`).

    signs       share of features, among those active often enough, whose rarer sign has at least a tenth of their active
                rows
    opposites   on axes of labelled opposites (singular/plural, good/bad, ...): how well the two signs of one feature
                separate the ends, how well the best pair of halves of any features does, and how often that pair is one
                feature. Chosen on half of the word pairs, scored on the other half. Skyline: difference in means
    steering    along and against that one feature, or along either half of the pair, by half the distance between the ends'
                means: effect on the answers for the other word pairs, relative to the difference in means; and whether the
                two directions have opposite effects (`two_sided`)
    logits      cosine between the logit effects of adding +v and −v, with v a feature's direction at its mean activation;
                −1 if they are opposite. In a nearly linear model that holds for any direction, so only the gap to random
                directions matters

Unsigned codes are measured too: their share is 0, and a single feature reaches at most ¾.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from analysis.evals.bidirectional.axes import Prompts, all_prompts
from analysis.evals.bidirectional.halves import (
    Ends,
    Half,
    best_feature,
    best_pair,
    share_with_both,
    sign_counts,
    two_sided,
    worth,
)
from analysis.evals.bidirectional.steering import logits_after, rows_at
from analysis.evals.common.context import Context
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.intervals import metric, plain
from analysis.evals.common.result import Found, Metric, Metrics, Units
from analysis.evals.probes.sparse import matrix
from sae.coder import Coder
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Settings:
    """Amount of data."""

    n_pairs: int = 16
    """Maximum word pairs per axis."""
    n_features: int = 12
    """Features whose logit effects are compared."""


@dataclass(frozen=True)
class Seen:
    """Sentences of one axis, and the site's rows at each sentence's word."""

    prompts: Prompts
    x: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]

    @property
    def difference(self) -> Float[Tensor, " d_out"]:
        """Mean of end A minus mean of end B, over the pairs used for choosing."""
        fitted, is_a = self.prompts.fitted, self.prompts.is_a
        return self.target[fitted & is_a].mean(0) - self.target[fitted & ~is_a].mean(0)

    @property
    def middle(self) -> Float[Tensor, " d_out"]:
        """Midpoint between the two means."""
        fitted, is_a = self.prompts.fitted, self.prompts.is_a
        return (self.target[fitted & is_a].mean(0) + self.target[fitted & ~is_a].mean(0)) / 2


def _see(context: Context, settings: Settings) -> list[Seen]:
    model, site = context.model, context.trained.site
    found = all_prompts(model, settings.n_pairs)
    return [Seen(one, *rows_at(model, site, one.tokens, one.word)) for one in found]


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure all four groups; without a model, only the signs."""
    metrics: dict[str, Mapping[str, Metric]] = {"signs": _signs(context, coder)}
    units = {"rows": context.rows.units}
    try:
        seen = context.once("opposites", partial(_see, context, settings))
    except SaescopeError as error:
        return Found(metrics, units, notes=(f"Opposites, steering and logits were skipped. {error}",))
    chosen = [_chosen(one, coder) for one in seen]
    context.progress(0.3)
    opposites, pair_units, details = _opposites(seen, chosen)
    metrics["opposites"] = opposites
    steering, more = _steering(context, seen, chosen, coder)
    metrics |= {"steering": steering} if steering else {}
    context.progress(0.7)
    metrics["logits"] = _logits(context, seen, coder, settings.n_features)
    return Found(metrics, units | {"pairs": pair_units}, [*details, *more])


def _signs(context: Context, coder: Coder) -> dict[str, Metric]:
    rows, d = context.rows, coder.d_sae
    positive, negative = sign_counts(matrix(context.code(coder)), rows.unit, len(rows.units.id))

    def share(sums: Float[np.ndarray, "n_draws n_sums"]) -> Float[np.ndarray, " n_draws"]:
        return share_with_both(sums[:, :d], sums[:, d:])

    return {"share_with_both": metric(
        share, np.concatenate([positive, negative], 1), rows.units.n_rows, unit="share", direction="none",
        formula="features whose rarer sign has a tenth of their active rows, of those active in 20 rows")}


# -- opposites --------------------------------------------------------------------------------------------------------

Chosen = tuple[Ends, Ends, Any]
"""The best single feature and the best pair of halves on the pairs used for choosing, and the codes of all sentences."""


def _chosen(seen: Seen, coder: Coder) -> Chosen:
    codes = matrix(coder.encode(seen.x.to(coder.W_dec.device)))
    fitted = np.flatnonzero(seen.prompts.fitted)
    delta = worth(codes[fitted], seen.prompts.is_a[fitted])
    return best_feature(delta), best_pair(delta), codes


def _opposites(
    seen: list[Seen], chosen: list[Chosen]
) -> tuple[dict[str, Metric], Units, list[Mapping[str, Any]]]:
    points = {"one_feature": [], "pair": []}  # type: dict[str, list[np.ndarray]]
    details: list[Mapping[str, Any]] = []
    for one, (feature, pair, codes) in zip(seen, chosen, strict=True):
        is_a = one.prompts.is_a
        for name, ends in (("one_feature", feature), ("pair", pair)):
            points[name].append(ends.points(codes, is_a))
        details.append({
            "axis": one.prompts.axis.name, "n_pairs": int(one.prompts.pair.max()) + 1, "feature": feature.a.feature,
            "pair": [[half.feature, half.sign] for half in (pair.a, pair.b)], "pair_is_one_feature": pair.one_feature,
            **{f"accuracy_{name}": float(some[-1][~one.prompts.fitted].mean()) for name, some in points.items()},
        })
    units = _pair_units(seen)
    formula = "balanced accuracy on labelled opposites by {}, mean over axes"
    metrics = {
        name: _mean_over_axes(seen, some, formula.format(how), units)
        for (name, some), how in zip(points.items(), ("the signs of one feature", "the best pair of halves"), strict=True)
    }
    same = [float(pair.one_feature) for _, pair, _ in chosen]
    metrics["same_feature"] = plain(
        float(np.mean(same)), unit="share", direction="higher",
        formula="axes whose best pair of halves is one feature", n=len(same))
    return metrics, units, details


def _pair_units(seen: list[Seen]) -> Units:
    """The tested word pairs of all axes as units, since a pair's sentences are not independent."""
    n = [int(one.prompts.pair.max()) + 1 for one in seen]
    counts = [np.bincount(one.prompts.pair[~one.prompts.fitted], minlength=k) for one, k in zip(seen, n, strict=True)]
    return Units("pair of words", np.arange(sum(n)), np.concatenate(counts).astype(np.float64))


def _mean_over_axes(seen: list[Seen], points: list[Float[np.ndarray, " _"]], formula: str, units: Units) -> Metric:
    """Mean over axes of each axis's Σ points / n."""
    sums, first = np.zeros((len(units.id), 2 * len(seen))), 0
    for i, (one, some) in enumerate(zip(seen, points, strict=True)):
        tested, n = ~one.prompts.fitted, int(one.prompts.pair.max()) + 1
        for column, values in ((2 * i, some[tested]), (2 * i + 1, np.ones(int(tested.sum())))):
            sums[first : first + n, column] = np.bincount(one.prompts.pair[tested], values, n)
        first += n
    return metric(_mean_ratio, sums, units.n_rows, unit="share", direction="higher", formula=formula, of="pairs")


def _mean_ratio(sums: Float[np.ndarray, "n_draws n_sums"]) -> Float[np.ndarray, " n_draws"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[:, ::2] / sums[:, 1::2]).mean(1))


def skyline(context: Context, settings: Settings) -> Mapping[str, Metrics]:
    """Skyline by difference in means: the sign of ⟨x − middle, mean of A − mean of B⟩."""
    seen = context.once("opposites", partial(_see, context, settings))
    points = []
    for one in seen:
        said = ((one.target - one.middle) @ one.difference > 0).numpy()
        points.append((said == one.prompts.is_a).astype(np.float64))
    found = _mean_over_axes(
        seen, points, "balanced accuracy on labelled opposites by the difference in means, mean over axes",
        _pair_units(seen))
    return {"difference in means": {"opposites": {"one_feature": found, "pair": found}}}


# -- steering ---------------------------------------------------------------------------------------------------------


def _steering(
    context: Context, seen: list[Seen], chosen: list[Chosen], coder: Coder
) -> tuple[dict[str, Metric], list[Mapping[str, Any]]]:
    """Steering along and against, on the axes whose ends have different answers."""
    W = _unit_rows(coder)
    records: list[Mapping[str, Any]] = []
    for one, (feature, pair, _) in zip(seen, chosen, strict=True):
        if one.prompts.answers is None:
            continue
        random = torch.randn(W.shape[1], generator=torch.Generator().manual_seed(context.seed))
        mean = one.difference / one.difference.norm()
        ways = {
            "one_feature": tuple(_direction(W, half) for half in (feature.a, feature.b)),
            "pair": tuple(_direction(W, half) for half in (pair.a, pair.b)),
            "difference_in_means": (mean, -mean), "random": (random / random.norm(), -random / random.norm()),
        }
        length = float(one.difference.norm()) / 2
        effects = {name: _effects(context, one, some, length) for name, some in ways.items()}
        known = effects["difference_in_means"][0] - effects["difference_in_means"][1]
        records += [
            {"axis": one.prompts.axis.name, "steered": name, "toward_a": a, "toward_b": b,
             "effect": (a - b) / known if known else 0.0, "two_sided": two_sided(a, b)}
            for name, (a, b) in effects.items()
        ]
    metrics = {}
    for name in ("one_feature", "pair", "random"):
        for figure, unit in (("effect", "share"), ("two_sided", "ratio")):
            values = [record[figure] for record in records if record["steered"] == name]
            metrics[f"{figure}_{name}"] = plain(
                float(np.mean(values)) if values else None, unit=unit, n=len(values),
                direction="none" if name == "random" else "higher",
                formula=f"{figure.replace('_', ' ')} of steering by {name.replace('_', ' ')}, mean over axes")
    return (metrics if records else {}), records


def _unit_rows(coder: Coder) -> Float[Tensor, "d_sae d_out"]:
    W = coder.W_dec.detach().float().cpu()
    return W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _direction(W: Float[Tensor, "d_sae d_out"], half: Half) -> Float[Tensor, " d_out"]:
    return half.sign * W[half.feature]


def _effects(
    context: Context, seen: Seen, ways: tuple[Float[Tensor, " d_out"], ...], length: float
) -> tuple[float, float]:
    """Effect of steering either way on the logit of A's answer minus that of B's, on the held-out pairs."""
    prompts = seen.prompts
    assert prompts.answers is not None
    # answers belong to the last frame
    rows = np.flatnonzero(~prompts.fitted & (prompts.frame == prompts.frame.max()))
    say = partial(logits_after, context.model, context.trained.site, prompts.tokens[torch.from_numpy(rows)],
                  prompts.word[rows], prompts.last[rows])
    a, b = prompts.answers
    key = f"unsteered {prompts.axis.name}"
    before = context.once(key, lambda: float((logits := say())[:, a].mean() - logits[:, b].mean()))
    after = [say(length * way.expand(len(rows), -1)) for way in ways]
    toward_a, toward_b = (float(logits[:, a].mean() - logits[:, b].mean()) - before for logits in after)
    return toward_a, toward_b


# -- logits -----------------------------------------------------------------------------------------------------------


def _logits(context: Context, seen: list[Seen], coder: Coder, n_features: int) -> dict[str, Metric]:
    """Cosines between the logit effects of +v and −v, for features and for random directions of the same length."""
    code = context.code(coder)
    counts = code.counts().cpu().numpy()
    length = (code.sums(code.value.abs()).cpu().double().numpy() / counts.clip(min=1))
    rng = np.random.default_rng(context.seed)
    often = np.flatnonzero(counts >= 20)
    features = np.sort(rng.permutation(often)[:n_features]).astype(np.int64)
    if not len(features):
        return {}
    W, generator = _unit_rows(coder), torch.Generator().manual_seed(context.seed)
    drawn = torch.randn(len(features), W.shape[1], generator=generator)
    lengths = torch.from_numpy(length[features]).float()[:, None]
    found = {
        "cosine": _cosines(context, seen[0].prompts, lengths * W[features]),
        "cosine_random": _cosines(context, seen[0].prompts, lengths * drawn / drawn.norm(dim=1, keepdim=True)),
    }
    of = {"cosine": "features", "cosine_random": "random directions as long"}
    return {
        name: plain(float(values.mean()), unit="cosine", direction="none", n=len(values),
                    formula=f"cosine of the logit effects of +v and −v of {of[name]}, mean")
        for name, values in found.items()
    }


def _cosines(context: Context, prompts: Prompts, added: Float[Tensor, "n d_out"]) -> Float[np.ndarray, " n"]:
    """Cosine of each vector, averaged over a few sentences; logits are centred, since softmax ignores their mean."""
    rows = np.arange(0, len(prompts.tokens), max(len(prompts.tokens) // 4, 1))[:4]
    n = len(rows)
    tokens, word, last = prompts.tokens[torch.from_numpy(rows)], prompts.word[rows], prompts.last[rows]
    say = partial(logits_after, context.model, context.trained.site)
    before = _centred(context.once("a few sentences", lambda: say(tokens, word, last)))
    vectors = added.repeat_interleave(n, 0)
    many = tokens.repeat(len(added), 1), np.tile(word, len(added)), np.tile(last, len(added))
    forward, back = (_centred(say(*many, sign * vectors)) - before.repeat(len(added), 1) for sign in (1, -1))
    cosines: Float[np.ndarray, " n"] = cosine_similarity(forward, back, dim=1).view(len(added), n).mean(1).double().numpy()
    return cosines


def _centred(logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "n d_vocab"]:
    return logits - logits.mean(1, keepdim=True)


EVALUATION = Evaluation(
    "bidirectional", "Bidirectionality", 1, Settings(), Settings(n_pairs=40, n_features=48), run, references=skyline,
    cost=(8.0, 30.0),
)
