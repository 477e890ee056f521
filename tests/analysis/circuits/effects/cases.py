"""One small case that the tests of node effects share: a random model in fp64, SAEs of every kind, and pairs of prompts."""

import torch
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples
from sae.base import SAE
from sae.variants.imported import Imported, ImportedConfig
from sae.variants.topk import AbsTopKConfig, TopK
from tests.training.model.dense import CODER, PLAIN, UPDATE, D, N, random_sae, transform
from training.model.language_model import Model
from training.site import Site

SIGNED = Site(input="blocks.1.hook_attn_out")
ROWS = Site(input="blocks.2.hook_attn_out")


def signed_sae() -> TopK:
    """Codes of both signs."""
    sae = TopK(AbsTopKConfig(d_sae=N, k=6), D, input=transform(D, torch.Generator().manual_seed(9)))
    _randomise(sae, 3)
    return sae.double()


def rows_sae() -> Imported:
    """Each row normalised by its own statistics, as SAELens can: offsets without a skip path."""
    sae = Imported(ImportedConfig(d_sae=N, architecture="topk", k=5, row_norm="layer_norm"), D)
    _randomise(sae, 4)
    return sae.double()


def _randomise(sae: SAE, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def saes() -> dict[Site, SAE]:
    return {
        CODER: random_sae(2, kind="jumprelu", skip=True), PLAIN: random_sae(0), SIGNED: signed_sae(),
        UPDATE: random_sae(1, kind="jumprelu"), ROWS: rows_sae(),
    }


def circuit_model(model: Model) -> CircuitModel:
    return CircuitModel(model, saes())


def pairs(n: int = 4, n_ctx: int = 7) -> Examples:
    """Prompts that differ from position 2 on at some tokens; the first and a middle position are not spliced."""
    generator = torch.Generator().manual_seed(1)
    clean, other = torch.randint(3, 259, (2, n, n_ctx), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [2, 5]] = other[:, [2, 5]]
    keep = torch.ones(n, n_ctx, dtype=torch.bool)
    keep[:, 0] = False
    keep[1, 4] = False
    right, wrong = torch.randint(3, 259, (2, n, 1), generator=generator)
    return Examples(clean, corrupt, right, wrong, keep)


def difference(logits: Tensor, examples: Examples) -> Tensor:
    """The logit difference."""
    return (logits.gather(1, examples.right) - logits.gather(1, examples.wrong)).squeeze(1)


def log_probability(logits: Tensor, examples: Examples) -> Tensor:
    return logits.log_softmax(-1).gather(1, examples.right).squeeze(1)
