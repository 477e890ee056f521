"""Integrated gradients: completeness, its order in the number of steps, and what a run costs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.circuits.effects.completeness import Completeness, completeness
from analysis.circuits.effects.exact import exact_effects
from analysis.circuits.effects.ig import integrated_gradients
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.model import CircuitModel
from tests.analysis.circuits.effects.cases import circuit_model, difference, log_probability, pairs
from tests.training.model.dense import random_sae
from tests.training.model.test_frozen import configs
from tests.training.model.test_models import save_random
from training.model.frozen import HELD
from training.model.load import load_model
from training.site import Site


@pytest.fixture(scope="module")
def model() -> CircuitModel:
    return circuit_model(load_model("native:n_layers=3", dtype="float64"))


def residual(model: CircuitModel, n_steps: int) -> Completeness:
    found = node_effects(model, pairs(), log_probability, n_steps=n_steps)
    return completeness(model, pairs(), log_probability, found, batch=3)


def test_the_sum_tends_to_the_change_of_the_metric(model: CircuitModel) -> None:
    """Midpoint rule: four times the steps, a sixteenth of the error."""
    few, many = residual(model, 10), residual(model, 40)
    assert few.actual.shape == few.predicted.shape == (5, 4) and float(np.abs(few.actual).min()) > 1e-4
    assert float(few.residual.max()) < 0.02 and float(many.by_example.max()) < 1e-3
    gaps = [np.abs(c.predicted - c.actual).sum() for c in (few, many)]
    assert 12 < gaps[0] / gaps[1] < 20


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_grouped_queries_parallel_blocks_and_post_norms(name: str, tmp_path: Path) -> None:
    """A residual, an attention and an MLP site of each: gradients through the model add up to what moving the site does."""
    save_random(tmp_path, configs()[name])
    coder = Site(input="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out")
    sites = [Site(input="blocks.0.hook_resid_post"), Site(input="blocks.1.hook_attn_out")]
    saes = {coder: random_sae(2, skip=True), **{site: random_sae(i) for i, site in enumerate(sites)}}
    model = CircuitModel(load_model(f"local:{tmp_path}", dtype="float64"), saes)
    assert set(model.sites[1:]) == {sites[1], coder}
    found = node_effects(model, pairs(), log_probability, n_steps=20)
    gap = completeness(model, pairs(), log_probability, found)
    # transformers normalises in fp32 whatever the model's dtype
    assert float(np.abs(gap.actual).max(1).min()) > 1e-4 and float(gap.by_example.max()) < 2e-3
    few = node_effects(model, pairs(), difference, method="attribution", freeze=HELD).largest(12)
    exact = exact_effects(model, pairs(), difference, nodes=few.nodes, freeze=HELD)
    # Gemma 2 caps its logits, which nothing holds
    close = (1e-3 if name == "gemma2" else 1e-5) * np.abs(exact.mean).max()
    np.testing.assert_allclose(few.values.toarray(), exact.values.toarray(), atol=close)


def test_one_step_is_the_gradient_half_way(model: CircuitModel) -> None:
    examples = pairs()
    clean, _ = model.states(examples.clean, examples.keep)
    other, _ = model.states(examples.corrupt, examples.keep)
    found = integrated_gradients(model, examples, difference, clean, other, n_steps=1)
    for site in model.sites:
        middle = ((clean[site].target + other[site].target) / 2).requires_grad_()
        logits = model.run(examples.clean, examples.keep, {site: lambda rows, mask, put=middle: put})
        (expected,) = torch.autograd.grad(difference(logits[:, -1], examples).sum(), middle)
        torch.testing.assert_close(found[site], expected, rtol=1e-9, atol=1e-12)


def test_time_is_linear_in_sites_and_steps(model: CircuitModel, request: pytest.FixtureRequest) -> None:
    """Runs are counted, and blocks before a site run once for all of its steps."""
    blocks = [0, 0, 0]
    for i in range(3):
        attention = model.model.location(f"blocks.{i}.hook_attn_out")[0].module

        def count(*args, i=i):
            blocks[i] += 1

        request.addfinalizer(attention.register_forward_hook(count).remove)
    examples = pairs()
    clean, _ = model.states(examples.clean, examples.keep)
    other, _ = model.states(examples.corrupt, examples.keep)
    blocks[:] = [0, 0, 0]
    integrated_gradients(model, examples, difference, clean, other, n_steps=6, batch=4)
    # sites by block: 0 | 1, 1 | 2, 2 with the transcoder's and the update's inputs in their own blocks
    assert blocks == [6 + 4, 6 + 2 * 6 + 2, 5 * 6]
    blocks[:] = [0, 0, 0]
    integrated_gradients(model, examples, difference, clean, other, n_steps=6, batch=12)
    assert blocks == [2 + 4, 2 + 2 * 2 + 2, 5 * 2]
