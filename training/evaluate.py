"""Held-out evaluation, on rows not used for training or calibration.

L0, FVE and density on rows; CE recovered and KL by splicing the reconstruction into the model's forward pass, where masked
rows (BOS, special tokens, outliers) pass unchanged. Intervals are over the units of the held-out split: documents, groups
of documents if the split keeps some together, or sequences for rows without text.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn import functional

from sae.base import SAE
from sae.coder import Coder
from sae.metrics import FVE, ratio, recovered
from sae.ranks import Ranks
from training.activations.calibration import KeepMask
from training.activations.sources import Source
from training.corpus.tokens import Tokens, spread
from training.model.language_model import Model
from training.model.splice import Reconstruct, at_sites
from training.site import Site, SiteRows

CHUNK_ROWS = 4096
CHUNK_TOKENS = 64
RESIDUAL = re.compile(r"blocks\.\d+\.hook_resid_(pre|mid|post)")
DENSE = 0.1
"""A feature that fires on more than this share of rows counts as dense."""
Nats = dict[str, Float[np.ndarray, "n_seqs n_predicted"]]
"""Cross-entropy (or KL) of each predicted token, in nats, by the name of the intervention on the model."""


class HeldOut:
    """Unmasked rows of held-out sequences, read once and kept in memory."""

    def __init__(self, source: Source, tokens: Tokens, mask: KeepMask, hooks: Sequence[str], n_rows: int) -> None:
        """Read held-out sequences with `n_rows` rows in total (all, if there are fewer), spread over the held-out set.

        Args:
            source: source of the rows to evaluate on (`training.activations.harvest.open_heldout`).
            tokens: tokens of the same rows.
            mask: mask of the training run.
            hooks: hooks to read.
            n_rows: rows before masking.
        """
        self.source, self.tokens = source, tokens
        self.seqs = spread(tokens.sequences_with_rows(held_out=True), -(-n_rows // tokens.n_ctx))
        keep = mask.over(source, tokens).keep(self.seqs, tokens.n_ctx)
        self.keep = keep.view(-1, tokens.n_ctx).numpy()
        self.units = Units(tokens, self.seqs, self.keep)
        self.acts = {hook: source.rows(hook, self.seqs, tokens.n_ctx)[keep] for hook in hooks}

    @property
    def n_rows(self) -> int:
        """Number of rows evaluated."""
        return len(self.units.number)

    @torch.no_grad()
    def measure(self, sae: SAE, site: Site) -> dict[str, Any]:
        """L0, FVE, cosine of target and reconstruction about the training mean, fractions of dense and silent features."""
        device = sae.W_dec.device
        units = torch.from_numpy(self.units.number)
        fve = FVE(self.units.n, sae.target.mean.cpu())
        counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
        l0, cosine = np.zeros(self.n_rows), np.zeros(self.n_rows)
        for start in range(0, self.n_rows, CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            acts = {hook: self.acts[hook][chunk].to(device).float() for hook in site.hooks}
            x, target = site.rows(acts)
            code = sae.encode(x)
            counts += code.counts()
            l0[chunk] = sae.ranks.over_features(code.l0()).cpu().numpy()
            x_hat = sae.decode(code)
            fve.add(units[chunk], target, x_hat)
            turn = functional.cosine_similarity(target - sae.target.mean, x_hat - sae.target.mean)
            cosine[chunk] = turn.cpu().numpy()
        n_rows, density = self.units.n_rows, counts / self.n_rows
        return {
            **fve.interval().named("fve"), **ratio(self.units.sums(l0), n_rows, n_rows).named("l0"),
            **ratio(self.units.sums(cosine), n_rows, n_rows).named("cosine"),
            "dense": _share(density > DENSE, sae.ranks), "silent": _share(counts == 0, sae.ranks),
            "n_rows": self.n_rows, "n_seqs": len(self.seqs), **self.units.counts(),
        }


def _share(which: Bool[Tensor, " d_sae"], ranks: Ranks) -> float:
    """The fraction of all features, over all ranks."""
    return float(ranks.over_features(which.float().mean())) / ranks.n_shards


class Units:
    """The unit (usually the document) of each row, numbered from 0; bootstrap intervals resample units."""

    def __init__(self, tokens: Tokens, seqs: Int64[np.ndarray, " n"], rows: Bool[np.ndarray, "n n_ctx"]) -> None:
        """Take the rows of these sequences that `rows` marks."""
        self.kind, number = tokens.units()
        self.id, self.number = np.unique(number[seqs][rows], return_inverse=True)
        self.n = len(self.id)
        self.n_documents = None if tokens.folder is None else len(np.unique(tokens.documents()[seqs][rows]))
        self.n_rows = self.sums(np.ones(len(self.number)))

    def sums(self, values: Float[np.ndarray, " n_rows"]) -> Float[np.ndarray, " n_units"]:
        """Per-row values summed over each unit, in fp64."""
        return np.bincount(self.number, values, self.n)

    def counts(self) -> dict[str, Any]:
        """For a summary: the unit of intervals, the number of units, and of documents if known."""
        documents = {} if self.n_documents is None else {"n_documents": self.n_documents}
        return {"interval_unit": self.kind, "n_units": self.n, **documents}


class Spliced:
    """Cross-entropy of the model per token: clean, with each SAE spliced in, and with the site mean- and zero-ablated."""

    def __init__(
        self, model: Model, source: Source, tokens: Tokens, mask: KeepMask, n_tokens: int, *, batch_seqs: int = 8
    ) -> None:
        """Choose held-out sequences with at least `n_tokens` predicted tokens, or all, spread over the held-out set.

        Sequences with equal masks are put next to each other. `source`, `tokens` and `mask` are as in `HeldOut`.
        """
        assert tokens.tokens is not None
        self.model, self.source, self.tokens = model, source, tokens
        self.mask = mask.over(source, tokens)
        seqs = spread(tokens.sequences_with_rows(held_out=True), -(-n_tokens // (tokens.n_ctx - 1)))
        masks = self.mask.keep(seqs, tokens.n_ctx).view(len(seqs), tokens.n_ctx).numpy()
        self.seqs = seqs[sorted(range(len(seqs)), key=lambda i: masks[i].tobytes())]
        self.batch_seqs = batch_seqs

    @torch.no_grad()
    def measure(
        self, members: Sequence[tuple[SAE, Site]], advance: Callable[[int], None] = lambda _: None
    ) -> list[dict[str, Any]]:
        """CE recovered against mean and zero ablation, and KL(clean ‖ spliced) in nats per token, for each SAE."""
        return [self.summary(nats) for nats in self.nats([(sae, site, sae.target.mean) for sae, site in members], advance)]

    @torch.no_grad()
    def nats(
        self, members: Sequence[tuple[Coder, Site, Float[Tensor, " d_out"]]],
        advance: Callable[[int], None] = lambda _: None, *, spliced_only: bool = False,
    ) -> list[Nats]:
        """Cross-entropy and KL per predicted token, for each member: (coder, site, target mean used for mean ablation).

        Returns: arrays `[n_seqs, n_ctx − 1]` by name, in the order of `seqs`: cross-entropy `clean`, `spliced`, with the
            target ablated to its `mean` and to `zero`; and `kl`, KL(clean ‖ spliced). With `spliced_only`, only `spliced`.
        """
        sums: list[dict[str, list[np.ndarray]]] = [{} for _ in members]
        hooks = [hook for _, site, _ in members for hook in site.hooks]
        for start in range(0, len(self.seqs), self.batch_seqs):
            seqs = self.seqs[start : start + self.batch_seqs]
            with self.model.replayed(hooks):
                self._measure(seqs, members, sums, spliced_only)
            advance(len(seqs) * (self.tokens.n_ctx - 1))
        return [{name: np.concatenate(parts) for name, parts in out.items()} for out in sums]

    def _measure(
        self, seqs: Int64[np.ndarray, " n"], members: Sequence[tuple[Coder, Site, Float[Tensor, " d_out"]]],
        sums: Sequence[dict[str, list[np.ndarray]]], spliced_only: bool,
    ) -> None:
        """Append the results of a batch of sequences to each member's lists."""
        n_ctx = self.tokens.n_ctx
        ids = torch.from_numpy(self.tokens.tokens[seqs]).long().to(self.model.device)  # type: ignore[index]
        keep = self.mask.keep(seqs, n_ctx).view(len(seqs), n_ctx).to(self.model.device)
        clean = None if spliced_only else self.model.logits(ids)
        ce_clean = None if clean is None else _cross_entropy(clean, ids)
        shared: dict[Any, np.ndarray] = {}
        for (coder, site, mean), out in zip(members, sums, strict=True):
            # members at the same site share its ablations
            key = (site.input, site.target, site.update)
            ablations = {} if clean is None else {"mean": mean, "zero": torch.zeros_like(mean)}
            for name, constant in ablations.items():
                if (key, name) not in shared:
                    shared[key, name] = self._ablated(ids, keep, site, constant)
                out.setdefault(name, []).append(shared[key, name])
            with at_sites(self.model, {site: partial(_reconstruct, coder)}, keep):
                spliced = self.model.logits(ids)
            out.setdefault("spliced", []).append(_cross_entropy(spliced, ids))
            if clean is not None and ce_clean is not None:
                out.setdefault("clean", []).append(ce_clean)
                out.setdefault("kl", []).append(_divergence(clean, spliced, ids))

    def _ablated(
        self, ids: Int[Tensor, "n_seqs n_ctx"], keep: Bool[Tensor, "n_seqs n_ctx"], site: Site,
        constant: Float[Tensor, " d_out"],
    ) -> Float[np.ndarray, "n_seqs n_predicted"]:
        """Cross-entropy with the target of unmasked rows ablated to a constant.

        Later layers depend only on the residual stream. So at residual sites, sequences that the ablation makes equal share
        one forward pass; most are equal, since they differ only in which rows are masked.
        """
        ablate: Reconstruct = lambda rows, _: constant.expand(rows.target.shape)  # noqa: E731
        if site.hooks != (site.input,) or not RESIDUAL.fullmatch(site.input):
            with at_sites(self.model, {site: ablate}, keep):
                return _cross_entropy(self.model.logits(ids), ids)
        acts = self.model.activations(ids, [site.input])[site.input].clone()
        acts[keep] = constant.to(acts)
        digests = [hashlib.sha256(rows.float().cpu().numpy().tobytes()).digest() for rows in acts]
        groups = [[i for i, other in enumerate(digests) if other == digest] for digest in dict.fromkeys(digests)]
        first = [group[0] for group in groups]
        with self.model.splice(site.input, lambda _: acts[first]):
            logits = self.model.logits(ids[first])
        nats = np.zeros((len(ids), ids.shape[1] - 1))
        for group, mine in zip(groups, logits, strict=True):
            nats[group] = _cross_entropy(mine.expand(len(group), -1, -1), ids[group])
        return nats

    def units(self) -> Units:
        """The units of the predicted tokens; a token belongs to its own unit, whatever its context."""
        predicted = np.ones((len(self.seqs), self.tokens.n_ctx), dtype=bool)
        predicted[:, 0] = False
        return Units(self.tokens, self.seqs, predicted)

    def summary(self, nats: Nats) -> dict[str, Any]:
        """Summarise the values of `nats`, with intervals."""
        units = self.units()
        sums = {name: units.sums(values.reshape(-1)) for name, values in nats.items()}
        out: dict[str, Any] = {"ce_n_tokens": len(units.number), "ce_n_units": units.n}
        for name in ("clean", "spliced", "mean", "zero"):
            out |= ratio(sums[name], units.n_rows, units.n_rows).named(f"ce_{name}")
        out |= ratio(sums["kl"], units.n_rows, units.n_rows).named("kl")
        for name in ("mean", "zero"):
            out |= recovered(sums["clean"], sums["spliced"], sums[name], units.n_rows).named(f"ce_recovered_{name}")
        return out


def _reconstruct(
    coder: Coder, rows: SiteRows, _: Bool[Tensor, "n_seqs n_ctx"]
) -> Float[Tensor, "n_rows d_out"]:
    return coder.decode(coder.encode(rows.x.to(coder.W_dec.device)))


def _chunks(ids: Int[Tensor, "n_seqs n_ctx"]) -> Iterator[tuple[int, slice, slice]]:
    """Yield (sequence, predicting positions, predicted positions), a few tokens at a time.

    Logits are converted to fp32 one chunk at a time: with a large vocabulary a whole batch would take more memory than the
    model.
    """
    last = ids.shape[1] - 1
    for seq in range(len(ids)):
        for start in range(0, last, CHUNK_TOKENS):
            stop = min(start + CHUNK_TOKENS, last)
            yield seq, slice(start, stop), slice(start + 1, stop + 1)


def _cross_entropy(
    logits: Float[Tensor, "n_seqs n_ctx d_vocab"], ids: Int[Tensor, "n_seqs n_ctx"]
) -> Float[np.ndarray, "n_seqs n_predicted"]:
    """Cross-entropy of each predicted token, in nats; `n_predicted` is n_ctx − 1."""
    nats = np.zeros((len(ids), ids.shape[1] - 1))
    for seq, here, after in _chunks(ids):
        chunk = logits[seq, here].float()
        nats[seq, here] = (chunk.logsumexp(-1) - chunk.gather(-1, ids[seq, after, None]).squeeze(-1)).cpu().numpy()
    return nats


def _divergence(
    clean: Float[Tensor, "n_seqs n_ctx d_vocab"], other: Float[Tensor, "n_seqs n_ctx d_vocab"],
    ids: Int[Tensor, "n_seqs n_ctx"],
) -> Float[np.ndarray, "n_seqs n_predicted"]:
    """KL(clean ‖ other) at each predicted token, in nats; `n_predicted` is n_ctx − 1."""
    nats = np.zeros((len(ids), ids.shape[1] - 1))
    for seq, here, _ in _chunks(ids):
        p, q = (logits[seq, here].float().log_softmax(-1) for logits in (clean, other))
        nats[seq, here] = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).cpu().numpy()
    return nats
