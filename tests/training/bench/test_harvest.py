import pytest
import torch

from sae.errors import SaescopeError
from training.bench.harvest import bench_harvest, shortened
from training.model.load import load_model


def test_the_bare_forward_computes_the_same_thing():
    model = load_model("smollm2-135m")
    tokens = torch.randint(20, 49152, (2, 9), generator=torch.Generator().manual_seed(0))
    bare = shortened(model, "smollm2-135m", n_layers=3)
    expected = bare(input_ids=tokens, use_cache=False).last_hidden_state
    assert torch.equal(model.activations(tokens, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"], expected)


def test_figures_and_their_ratio():
    figures = bench_harvest(hook="blocks.2.hook_resid_post", n_seqs=2, n_ctx=32, repeats=3)
    low, high = figures["ours_range"]
    assert low <= figures["ours_tokens_per_s"] <= high
    (slowest, fastest), (bare_slowest, bare_fastest) = figures["ours_range"], figures["bare_range"]
    assert slowest / bare_fastest <= figures["ratio"] * 1.01 and figures["ratio"] <= 1.01 * fastest / bare_slowest


def test_other_hooks_are_refused():
    with pytest.raises(SaescopeError, match="hook_mlp_out"):
        bench_harvest(hook="blocks.2.hook_mlp_out")
