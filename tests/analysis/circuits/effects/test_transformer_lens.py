"""Node effects without regard to features beside transformer-lens' own attribution patching."""

from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.model import CircuitModel
from tests.analysis.circuits.effects.cases import difference, pairs
from tests.training.model.dense import random_sae
from training.model.load import load_model
from training.site import Site


def test_sites_as_a_whole_have_the_effects_that_attribution_patch_gives() -> None:
    """Heads and MLPs of two layers at every position. It goes from corrupt to clean, as we do with the pair swapped."""
    model, examples = load_model("native:n_layers=2", dtype="float64"), pairs().take(slice(0, 1))
    examples.keep[:] = True
    saes = {Site(input=f"blocks.{i}.hook_mlp_out"): random_sae(i) for i in range(2)}
    heads = [f"blocks.{i}.attn.hook_z[{head}]" for i in range(2) for head in (0, 2)]
    saes |= {Site(input=head): random_sae(9, d_in=8, d_out=8) for head in heads}
    circuit = CircuitModel(model, {Site(input="hook_embed"): random_sae(5), **saes})
    effects = node_effects(circuit, examples.swapped(), difference, method="attribution")

    def metric(logits: Tensor) -> Tensor:
        return difference(logits[:, -1], examples)[0]

    model.bridge.requires_grad_(True)  # it needs a graph from the weights on
    config = EdgeAttributionConfig(granularity="node")
    theirs = attribution_patch(model.bridge, examples.clean, examples.corrupt, metric, config).node_scores
    compared = 0
    for node, score in theirs.items():
        hook = f"{node.hook_name}[{node.head}]" if node.kind == "attn_head_out" else node.hook_name
        site = Site(input=hook)
        if site in circuit.index:
            mine = (effects.nodes.site == circuit.index[site]) & (effects.nodes.position == node.position)
            assert abs(effects.mean[mine].sum() - score) < 1e-6 * max(map(abs, theirs.values()))
            compared += score != 0
    assert compared >= 20
