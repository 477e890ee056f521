"""Subject–verb agreement on the packaged model: integrated gradients add up to what moving a site does."""

import numpy as np
import torch

from analysis.circuits.effects.completeness import completeness
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.metrics import logit_difference
from tests.training.model.dense import smol_sae
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site


def agreement(model: Model) -> Examples:
    """A pair, in both directions."""
    def ids(*texts: str) -> torch.Tensor:
        return torch.tensor([model.tokenizer(text, add_special_tokens=False).input_ids for text in texts])

    prompts = torch.cat([torch.full((2, 1), model.bos_id), ids("The key near the door", "The keys near the door")], dim=1)
    answers, keep = ids(" is", " are"), torch.ones_like(prompts, dtype=torch.bool)
    keep[:, 0] = False
    return Examples(prompts, prompts.flip(0), answers, answers.flip(0), keep)


def test_ten_steps_add_up_within_two_per_cent() -> None:
    model = load_model("smollm2-135m")
    sites = [Site(input="blocks.15.hook_resid_post"), Site(input="blocks.27.hook_mlp_out")]
    circuit = CircuitModel(model, {site: smol_sae(i) for i, site in enumerate(sites)})
    examples = agreement(model)
    assert float(logit_difference(model.logits(examples.clean)[:, -1], examples).min()) > 0.2
    residual = {}
    for method in ("attribution", "relp", "ig"):
        found = node_effects(circuit, examples, logit_difference, method=method, n_steps=10)
        gap = completeness(circuit, examples, logit_difference, found)
        assert float(np.abs(gap.actual.mean(1)).min()) > 0.1
        residual[method] = gap.residual
    assert float(residual["ig"].max()) < 0.02
    # what the gradient at the clean run alone misses at a residual site, and RelP's rules half make up for
    assert residual["attribution"][0] > 0.5 > residual["relp"][0]
