"""Doubling test of edges: double feature, error and token vectors (circuit-tracer's strongest attribution test).

In the linear forward of a model with a transcoder for every MLP (`FrozenModel`: attention patterns, norm scales and MLPs
frozen) an edge is exact. Double one vector, hold all others, and every pre-activation and logit changes by its edge:

    pre_d(u doubled) − pre_d = ⟨∂pre_d/∂target of u's row, through direct paths, vector of u⟩

This holds at any point, since the gradient is the same everywhere. Skip paths are handled in two ways; both must hold:

    node      the skip path's output is one more vector, held and doubled like the others (our graphs)
    linear    it follows its input, as one more direct path from input to target (circuit-tracer)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.circuits.effects.paths import CutRun, cut_run
from analysis.circuits.model import CircuitModel, State
from sae.base import SAE
from sae.code import from_pairs
from sae.variants.topk import TopK, TopKConfig
from training.model.frozen import HELD, FrozenModel
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site

Skips = Literal["node", "linear"]
_Item = TypeVar("_Item")
TOKENS = Site(input="hook_embed")
"""Where token embeddings enter."""
_COPIES = 128
"""Copies of the prompt per batch."""


@dataclass(frozen=True)
class Doubling:
    """Result of the doubling test.

    Attributes:
        name: name of the case.
        gap: largest |change − edge|.
        largest: largest |edge|.
        n_sources: number of doubled vectors, by kind.
        n_targets: number of tested pre-activations and logits, by kind.
        point: largest difference between edges from gradients at the clean point and at random vectors.
    """

    name: str
    gap: float
    largest: float
    n_sources: dict[str, int]
    n_targets: dict[str, int]
    point: float


@dataclass(frozen=True)
class _Source:
    kind: str
    site: Site
    row: int
    vector: Float[Tensor, " d"]


@dataclass(frozen=True)
class _Target:
    """A pre-activation at a site, or a logit (site None); `column` is the feature or token id."""

    site: Site | None
    row: int
    column: int


def doubling(
    circuit: CircuitModel, tokens: Int[Tensor, "1 n_ctx"], *, skips: Skips = "node", n_each: int = 32, seed: int = 0,
    name: str = "", freeze: Iterable[str] = HELD,
) -> Doubling:
    """Double a random sample of vectors, and compare the changes with the edges.

    Args:
        circuit: the model and its transcoders; SAEs at other sites are cut too.
        tokens: one prompt.
        skips: how skip paths are handled, see the module docstring.
        n_each: vectors of each kind (feature, error, skip path, token), pre-activations per site, and logits; each runs in
            its own copy of the prompt, 128 per batch.
        seed: seed of the sample.
        name: name of the case.
        freeze: frozen parts. Unless attention and norms are frozen, edges aren't exact.
    """
    generator = torch.Generator().manual_seed(seed)
    run = _Runs(circuit, tokens, skips, freeze)
    sources = _sample(run.sources(), n_each, generator)
    targets = run.targets(n_each, generator)
    predicted, elsewhere = (run.edges(targets, sources, point) for point in (None, generator))
    moved = run.movements(targets, sources)
    largest = float(predicted.abs().max())
    return Doubling(
        name, float((moved - predicted).abs().max()), largest, _count(source.kind for source in sources),
        _count("logit" if target.site is None else "pre-activation" for target in targets),
        float((elsewhere - predicted).abs().max()),
    )


class _Runs:
    """Cut runs of one prompt in the linear forward."""

    def __init__(
        self, circuit: CircuitModel, tokens: Int[Tensor, "1 n_ctx"], skips: Skips, freeze: Iterable[str]
    ) -> None:
        self.circuit, self.tokens, self.skips = circuit, tokens, skips
        self.forward, self.keep = FrozenModel.at(circuit.model, tokens, freeze), torch.ones_like(tokens, dtype=torch.bool)
        self.states, _ = circuit.states(tokens, self.keep, self.forward)
        embedded = circuit.model.activations(tokens, [TOKENS.input])[TOKENS.input][0]
        self.leaves = {TOKENS: embedded, **{site: self._leaf(site, state) for site, state in self.states.items()}}

    def _leaf(self, site: Site, state: State) -> Tensor:
        return state.target - state.offset if self._passes(site) else state.target

    def _passes(self, site: Site) -> bool:
        return self.skips == "linear" and self.circuit.saes[site].has_offsets

    def run(self, leaves: dict[Site, Float[Tensor, "n n_ctx _"]]) -> CutRun:
        """Run copies of the prompt with these vectors."""
        n = len(leaves[TOKENS])
        flat = {site: leaf.flatten(0, 1) for site, leaf in leaves.items()}
        passes = self.skips == "linear"
        tokens, keep = self.tokens.expand(n, -1), self.keep.expand(n, -1)
        return cut_run(self.circuit, tokens, keep, flat, self.forward, skips_pass=passes)

    def sources(self) -> list[_Source]:
        """Every active feature, error and token vector, and every skip path that is a node."""
        found = [_Source("token", TOKENS, row, vector) for row, vector in enumerate(self.leaves[TOKENS])]
        for site, state in self.states.items():
            sae, code = self.circuit.saes[site], state.code
            units = sae.W_dec[code.feature.long()] / sae.W_dec[code.feature.long()].norm(dim=1, keepdim=True)
            vectors = units * code.value[:, None]
            found += [_Source("feature", site, row, v) for row, v in zip(code.rows().tolist(), vectors, strict=True)]
            found += [_Source("error", site, row, error) for row, error in enumerate(state.error)]
            if sae.has_offsets and not self._passes(site):
                found += [_Source("skip", site, row, v) for row, v in enumerate(state.offset - sae.bias())]
        return found

    def targets(self, n_each: int, generator: torch.Generator) -> list[_Target]:
        """Pre-activations of every site, half of them of active features, and logits."""
        found = []
        for site, state in self.states.items():
            code = state.code
            active = torch.randperm(len(code.feature), generator=generator)[: n_each // 2]
            pairs = zip(code.rows()[active].tolist(), code.feature[active].tolist(), strict=True)
            found += [_Target(site, row, feature) for row, feature in pairs]
            found += self._random(site, n_each - len(active), code.d_sae, generator)
        return found + self._random(None, n_each, self.circuit.model.d_vocab, generator)

    def _random(self, site: Site | None, n: int, n_columns: int, generator: torch.Generator) -> list[_Target]:
        rows = torch.randint(self.tokens.shape[1], (n,), generator=generator).tolist()
        columns = torch.randint(n_columns, (n,), generator=generator).tolist()
        return [_Target(site, row, column) for row, column in zip(rows, columns, strict=True)]

    def edges(
        self, targets: list[_Target], sources: list[_Source], elsewhere: torch.Generator | None
    ) -> Float[Tensor, "n_targets n_sources"]:
        """All edges, with one backward pass per 128 targets, each in its own copy.

        Args:
            targets: ends of the edges.
            sources: starts of the edges.
            elsewhere: generator for taking gradients at random vectors instead of the clean ones.
        """
        found = []
        for chunk in _chunks(targets):
            leaves = {site: leaf.expand(len(chunk), -1, -1) for site, leaf in self.leaves.items()}
            if elsewhere is not None:
                leaves = {
                    site: leaf * torch.randn(leaf.shape, generator=elsewhere).to(leaf) for site, leaf in leaves.items()
                }
            run = self.run(leaves)
            values = self.values(run, chunk, torch.arange(len(chunk)))
            grads = torch.autograd.grad(values.sum(), list(run.leaves.values()), materialize_grads=True)
            by_site = {site: g.view(leaves[site].shape) for site, g in zip(run.leaves, grads, strict=True)}
            found.append(torch.stack([by_site[source.site][:, source.row] @ source.vector for source in sources], dim=1))
        return torch.cat(found)

    @torch.no_grad()
    def movements(self, targets: list[_Target], sources: list[_Source]) -> Float[Tensor, "n_targets n_sources"]:
        """Change of each target when each source is doubled, 128 sources per batch, each in its own copy."""
        one = {site: leaf[None] for site, leaf in self.leaves.items()}
        clean, found = self._all_values(self.run(one), targets, 1), []
        for chunk in _chunks(sources):
            leaves = {site: leaf.expand(len(chunk), -1, -1).clone() for site, leaf in self.leaves.items()}
            for copy, source in enumerate(chunk):
                leaves[source.site][copy, source.row] += source.vector
            found.append(self._all_values(self.run(leaves), targets, len(chunk)) - clean)
        return torch.cat(found, dim=1)

    def _all_values(self, run: CutRun, targets: list[_Target], n: int) -> Float[Tensor, "n_targets n"]:
        copies = torch.arange(n).repeat_interleave(len(targets))
        return self.values(run, targets * n, copies).view(n, len(targets)).t()

    def values(self, run: CutRun, targets: list[_Target], copies: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Value of each target in its copy of the prompt."""
        row = torch.tensor([target.row for target in targets])
        column = torch.tensor([target.column for target in targets])
        out = run.logits[copies, row, column.clamp_max(run.logits.shape[-1] - 1)]
        for site in self.states:
            mine = torch.tensor([i for i, target in enumerate(targets) if target.site == site], dtype=torch.long)
            out = out.index_copy(0, mine, self._pre(run, site, (copies * self.tokens.shape[1] + row)[mine], column[mine]))
        return out

    def _pre(
        self, run: CutRun, site: Site, row: Int[Tensor, " n"], feature: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        sae, x = self.circuit.saes[site], run.rows[site].x
        order = torch.argsort(row * sae.d_sae + feature)
        where = from_pairs(row[order], feature[order], x.new_zeros(len(row)), len(x), sae.d_sae)
        return sae.pre_activations(x, where)[torch.argsort(order)]


def _chunks(items: list[_Item]) -> Iterator[list[_Item]]:
    return (items[start : start + _COPIES] for start in range(0, len(items), _COPIES))


def _sample(sources: list[_Source], n_each: int, generator: torch.Generator) -> list[_Source]:
    """Sample `n_each` sources of each kind."""
    found = []
    for kind in dict.fromkeys(source.kind for source in sources):
        mine = [source for source in sources if source.kind == kind]
        found += [mine[i] for i in torch.randperm(len(mine), generator=generator)[:n_each].tolist()]
    return found


def _count(kinds: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def random_transcoders(model: Model, *, skip: bool, d_sae: int = 64, k: int = 8, seed: int = 0) -> dict[Site, SAE]:
    """Random transcoders for the MLPs of all blocks."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[Site, SAE] = {}
    for layer in range(model.n_layers):
        site = Site(input=f"blocks.{layer}.mlp.hook_in", target=f"blocks.{layer}.hook_mlp_out")
        sae = TopK(TopKConfig(d_sae=d_sae, k=k, skip=skip), model.d_hook(site.input), model.d_hook(site.output))
        with torch.no_grad():
            for name, p in sae.named_parameters():
                # small skip paths, so that 16 in a row keep vectors at a normal scale
                gain = 0.2 if name == "W_skip" else 1
                p.copy_(gain * torch.randn(p.shape, generator=generator) / sae.d_in**0.5)
        found[site] = sae.to(model.dtype)
    return found


def doubling_cases(dtype: str = "float32", *, layers: tuple[int, ...] = (2, 16), n_each: int = 32) -> list[Doubling]:
    """Doubling test on random models: without skip paths, and with skip paths handled in both ways.

    Args:
        dtype: dtype of the models; `float32` agrees to 1e-3, `float64` to 1e-9.
        layers: number of layers of each model.
        n_each: as in `doubling`.
    """
    found = []
    for n_layers in layers:
        model = load_model(f"native:n_layers={n_layers}", dtype=dtype)
        tokens = torch.randint(3, 259, (1, 8), generator=torch.Generator().manual_seed(0))
        ways: list[tuple[bool, Skips]] = [(False, "node"), (True, "node"), (True, "linear")]
        for skip, skips in ways:
            circuit = CircuitModel(model, random_transcoders(model, skip=skip))
            name = f"{n_layers} layers, {f'skip paths: {skips}' if skip else 'no skip paths'}"
            found.append(doubling(circuit, tokens, skips=skips, n_each=n_each, name=name))
    return found
