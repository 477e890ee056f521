"""Prompts of small models taken apart, which the tests of attribution share."""

from pathlib import Path

import torch
from torch import Tensor

from analysis.circuits.attribution.linear import LinearPrompt, Mlps, Skips
from analysis.circuits.model import CircuitModel
from analysis.circuits.selftest.doubling import random_transcoders
from sae.base import SAE
from sae.variants.topk import TopK, TopKConfig
from tests.training.model.test_frozen import configs
from tests.training.model.test_models import save_random
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site

RESIDUAL = ("blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.2.hook_attn_out")


def prompt(n: int = 7, seed: int = 0, *, bos: int | None = 0) -> Tensor:
    """Random tokens behind BOS."""
    tokens = torch.randint(3, 259, (n,), generator=torch.Generator().manual_seed(seed))
    if bos is not None:
        tokens[0] = bos
    return tokens


def native(n_layers: int = 3) -> Model:
    return load_model(f"native:n_layers={n_layers}", dtype="float64")


def random_model(folder: Path, name: str) -> Model:
    """A small model of an architecture, in fp64 but for its norms."""
    save_random(folder, configs()[name])
    return load_model(f"local:{folder}", dtype="float64")


def plain_sae(model: Model, hook: str, seed: int = 0, d_sae: int = 48, k: int = 6) -> SAE:
    """Random weights, no biases."""
    generator = torch.Generator().manual_seed(seed)
    sae = TopK(TopKConfig(d_sae=d_sae, k=k), model.d_hook(hook))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=generator))
        sae.W_enc.copy_(sae.W_dec.t())
    return sae.to(model.dtype)


def with_saes(model: Model, hooks: tuple[str, ...] = RESIDUAL) -> CircuitModel:
    return CircuitModel(model, {Site(input=hook): plain_sae(model, hook, i) for i, hook in enumerate(hooks)})


def with_transcoders(model: Model, *, skip: bool = False) -> CircuitModel:
    return CircuitModel(model, random_transcoders(model, skip=skip))


def taken_apart(
    circuit: CircuitModel, tokens: Tensor | None = None, *, mlps: Mlps | None = None, skips: Skips = "linear",
) -> LinearPrompt:
    return LinearPrompt(circuit, prompt() if tokens is None else tokens, mlps=mlps, skips=skips, copies=8)
