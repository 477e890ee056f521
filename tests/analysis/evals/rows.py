"""Rows and a context without a run, for evaluations of dictionaries made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.evals.common.context import Context, Rows, Size, TokenCosts
from analysis.trained import TrainedSAE
from sae.base import SAE, Transform
from sae.coder import Coder
from sae.errors import SaescopeError
from sae.variants import VARIANTS
from training.site import Site


def rows_of(x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None, n_documents: int = 12) -> Rows:
    """Rows in sequences of four, of documents in unequal shares."""
    n = len(x)
    number = np.arange(n)
    document = np.minimum(number % (n_documents + 3), n_documents - 1) * 5
    return Rows(
        x, x if target is None else target, None, (number % 4).astype(np.int64), (number // 4).astype(np.int64),
        document.astype(np.int64))


class HandContext(Context):
    """A context over rows that are given; there is no model."""

    def __init__(self, sae: SAE, rows: Rows, train_rows: Rows | None = None, seed: int = 0) -> None:
        super().__init__(TrainedSAE(Path("hand"), sae, Site()), "quick", Size(None, 1, None), seed)
        self.__dict__.update(rows=rows, train_rows=train_rows or rows)

    def costs(self, coder: Coder) -> TokenCosts:
        raise SaescopeError("there is no model here.")


def made_sae(variant: str = "topk", d_sae: int = 24, d: int = 8, k: int = 3, seed: int = 0, **fields: Any) -> SAE:
    """A random SAE with unit decoder rows about a mean that is not zero."""
    cls, config = VARIANTS[variant]
    extra = {"k": k} if "k" in config.model_fields else {"sparsity": {"coefficient": 0.1}}
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=g)
    sae = cls(config.model_validate({"variant": variant, "d_sae": d_sae, **extra, **fields}), d,
              input=Transform(mean, torch.tensor(1.3)))
    with torch.no_grad():
        directions = torch.randn(d_sae, d, generator=g)
        directions /= directions.norm(dim=1, keepdim=True)
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.t())
        sae.b_dec.copy_(0.1 * torch.randn(d, generator=g))
        sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=g))
        for name, buffer in sae.named_buffers():
            if name == "threshold_sum":
                buffer.fill_(0.6)
            if name == "threshold_weight":
                buffer.fill_(1.0)
    return sae
