"""Ablated runs against a transformer and SAEs written out densely, in fp64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.circuits.checks import ablation as runs
from analysis.circuits.checks.ablation import ALL_FEATURES, NOTHING_KEPT, PLAIN, Ablation, Errors, measure
from analysis.circuits.checks.faithfulness import faithfulness
from analysis.circuits.effects.reference import Means, Reference, mean_states, reference_states
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.base import SAE
from sae.errors import SaescopeError
from tests.training.model.dense import CODER, READ, UPDATE, WRITTEN, N, forward, random_sae
from tests.training.model.dense import PLAIN as RESID
from training.model.load import load_model
from training.model.splice import at_sites
from training.site import Site

N_CTX = 7


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    saes = {RESID: random_sae(0), UPDATE: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True)}
    return CircuitModel(load_model("native:n_layers=3", dtype="float64"), saes)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return some_examples(N_CTX)


@pytest.fixture(scope="module")
def means(model: CircuitModel, examples: Examples) -> Means:
    return mean_states(model, [examples])


def some_examples(n_ctx: int, n: int = 5) -> Examples:
    """BOS and one more row in the middle are not spliced."""
    tokens = torch.randint(3, 259, (2, n, n_ctx), generator=torch.Generator().manual_seed(n_ctx))
    keep = torch.ones(n, n_ctx, dtype=torch.bool)
    keep[:, 0] = keep[1, 3] = False
    none = torch.zeros(n, 0, dtype=torch.long)
    return Examples(tokens[0], tokens[1], torch.arange(n)[:, None], none, keep)


def metric(logits: Tensor, examples: Examples) -> Tensor:
    """One that is not linear, of several logits."""
    return logits.log_softmax(-1)[:, :7] @ torch.linspace(-1, 1, 7, dtype=logits.dtype)


def some_nodes(model: CircuitModel, anywhere: bool = False) -> Nodes:
    """Half of all nodes at half the positions, errors and skip path among them."""
    rng = np.random.default_rng(0)
    triples = [
        (site, ANYWHERE if anywhere else position, feature) for site in range(3) for position in range(1, N_CTX)
        for feature in range(SKIP, N) if rng.random() < 0.4
    ]
    return Nodes.of(triples)


class Dense:
    """The formula at the head of ablation.py, all features written out, one row at a time."""

    def __init__(self, model: CircuitModel, examples: Examples, ablation: Ablation, states: dict[Site, State]) -> None:
        self.model, self.examples, self.ablation, self.states = model, examples, ablation, states
        self.inside = set(ablation.nodes.triples)
        self.seen: dict[str, Tensor] = {}

    def kept(self, site: Site, position: int, feature: int) -> bool:
        i = self.model.sites.index(site)
        inside = {(i, position, feature), (i, ANYWHERE, feature)} & self.inside
        if feature == ERROR and self.ablation.errors != "circuit":
            return self.ablation.errors == "kept"
        return bool(inside) == (self.ablation.moved == "outside")

    def __call__(self, point: str, activation: Tensor) -> Tensor:
        for site, sae in self.model.saes.items():
            if WRITTEN[site] == point:
                before = self.seen.get(READ[site], activation)
                activation = activation.clone()
                for r, (example, position) in enumerate(self.examples.keep.nonzero().tolist()):
                    here = example, position
                    new = self.row(site, sae, position, before[here], activation[here], self.states[site], r)
                    activation[here] = new
        self.seen[point] = activation
        return activation

    def row(self, site: Site, sae: SAE, at: int, before: Tensor, after: Tensor, ref: State, r: int) -> Tensor:
        target = after - before if site.update else after
        code = sae.encode(before[None])
        acts, unit = code.to_dense()[0], sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
        offset = sae.centre(code).reshape(-1, sae.d_out)[0].detach()
        error = target - acts @ unit - offset
        keeps = torch.tensor([self.kept(site, at, f) for f in range(N)])
        new = torch.where(keeps, acts, ref.code.to_dense()[r]) @ unit
        new = new + (error if self.kept(site, at, ERROR) else ref.error[r])
        new = new + (offset if self.kept(site, at, SKIP) else ref.offset[r])
        return new + before if site.update else new


@pytest.mark.parametrize("reference", ["mean", "zero", "counterfactual"])
@pytest.mark.parametrize("moved, errors", [("outside", "circuit"), ("outside", "kept"), ("inside", "circuit"),
                                           ("inside", "dropped")])
def test_a_random_circuit_is_a_dense_models(
    model: CircuitModel, examples: Examples, means: Means, reference: Reference, moved: str, errors: Errors
) -> None:
    ablation = Ablation(some_nodes(model), moved, errors)  # type: ignore[arg-type]
    found = measure(model, [examples], metric, [ablation], reference=reference, means=means, batch=3)
    dense = Dense(model, examples, ablation, reference_states(model, examples, reference, means))
    expected = metric(forward(model.model, examples.clean, dense)[:, -1], examples)
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-9, atol=1e-9)
    assert abs(found - metric(model.model.logits(examples.clean)[:, -1], examples).numpy()).max() > 1e-3


def test_the_whole_circuit_is_the_model_and_the_empty_one_is_not(
    model: CircuitModel, examples: Examples, means: Means
) -> None:
    whole = Nodes.of([(s, p, f) for s in range(3) for p in range(N_CTX) for f in range(SKIP, N)])
    found = faithfulness(model, [examples], metric, [Ablation(whole), NOTHING_KEPT, PLAIN], means=means)
    plain = metric(model.model.logits(examples.clean)[:, -1], examples).numpy()
    np.testing.assert_allclose(found[0].run, plain, rtol=1e-10)
    np.testing.assert_array_equal(found[2].run, plain)
    assert [round(f.value, 9) for f in found] == [1, 0, 1]
    assert np.abs(found[0].empty - plain).min() > 1e-4
    np.testing.assert_allclose(found[0].by_example, 1, rtol=1e-8)


def test_moving_what_is_inside_is_keeping_the_complement(model: CircuitModel, examples: Examples, means: Means) -> None:
    nodes = some_nodes(model)
    every = {(s, p, f) for s in range(3) for p in range(N_CTX) for f in range(SKIP, N)}
    rest = Nodes.of(sorted(every - set(nodes.triples)))
    found = measure(model, [examples], metric, [Ablation(nodes, "inside"), Ablation(rest)], means=means)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


def test_a_node_anywhere_is_that_node_at_every_position(model: CircuitModel, examples: Examples, means: Means) -> None:
    nodes = some_nodes(model, anywhere=True).take(np.arange(30))
    spread = Nodes.of([(s, p, f) for s, _, f in nodes.triples for p in range(N_CTX)])
    found = measure(model, [examples], metric, [Ablation(nodes), Ablation(spread)], means=means)
    np.testing.assert_array_equal(found[0], found[1])


def test_all_features_without_errors_is_every_sae_spliced_in(model: CircuitModel, examples: Examples) -> None:
    """Against reconstructions by `SAE.forward`; with zero as the reference no error is left."""
    found = measure(model, [examples], metric, [ALL_FEATURES], reference="zero")
    at = {site: (lambda rows, mask, sae=sae: sae(rows.x)) for site, sae in model.saes.items()}
    logits = model.run(examples.clean, examples.keep, at)
    np.testing.assert_allclose(found[0], metric(logits[:, -1], examples).numpy(), rtol=1e-10)


def test_examples_of_several_lengths_come_in_their_order(model: CircuitModel) -> None:
    groups = [some_examples(7), some_examples(9)]
    means, nodes = mean_states(model, groups), some_nodes(model, anywhere=True)
    done: list[int] = []
    both = measure(model, groups, metric, [Ablation(nodes), PLAIN], means=means, batch=4, progress=done.append)
    assert done == [4, 4, 1, 1, 4, 4, 1, 1]
    apart = [measure(model, [group], metric, [Ablation(nodes), PLAIN], means=means) for group in groups]
    np.testing.assert_allclose(both, np.concatenate(apart, axis=1), rtol=1e-10)
    with pytest.raises(SaescopeError, match=r"position 8.* 7 tokens"):
        measure(model, groups, metric, [Ablation(Nodes.of([(0, 8, 1)]))], means=means)


def test_rows_outside_the_mask_pass_unchanged(model: CircuitModel, examples: Examples, means: Means) -> None:
    first = model.sites[0]
    seen: list[Tensor] = []
    at = runs.ablated(model, examples, runs.shares_of(model, NOTHING_KEPT, N_CTX), means.of(examples))
    with at_sites(model.model, {first: at[first]}, examples.keep), \
            model.model.splice(first.output, lambda acts: seen.append(acts) or acts):
        model.model.logits(examples.clean)
    clean = model.model.activations(examples.clean, [first.output])[first.output]
    torch.testing.assert_close(seen[0][~examples.keep], clean[~examples.keep], rtol=0, atol=0)
    gap = (seen[0] - clean)[examples.keep].norm(dim=1)
    assert float(gap.min()) > 1e-3
