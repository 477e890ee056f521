"""A planted dictionary: a random transformer whose tokens are sparse sums of known features, half of which it can't read.

Tokens are sums of orthonormal features. The directions of half of the features are projected out of everything that reads
the residual stream (queries, keys, values, MLPs, the unembedding), so these features affect nothing except, slightly, the
norms. What the model writes is not sparse in the dictionary, so there are errors, as with trained SAEs.
"""

import string
from random import Random

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.selftest.known import Known, Node, moving_features
from analysis.circuits.selftest.wiring import D_VOCAB, N_CTX, dictionary, written_model
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.metrics import logit_difference
from analysis.circuits.tasks.task import Pair, Task
from analysis.circuits.tasks.tokens import encode, one_length
from training.model.language_model import Model
from training.site import Site

_D, _D_SAE, _N_TOKENS = 32, 24, 6
_PER_TOKEN = 2
"""Features per token, from each half."""
_CONSTANT = 100.0
"""Norm of a constant vector at every position, so that features hardly change the norm; norm weights scale up by the same
factor."""
_ALPHABET = string.ascii_letters
_READERS = ("attn.q.weight", "attn.k.weight", "attn.v.weight", "mlp.fc_in.weight", "head.weight")


def planted_dictionary(n_pairs: int = 24, seed: int = 0) -> Known:
    """The model, its dictionary at two sites, and a task: which of two letters the model finds more likely."""
    basis = _basis(seed)
    model = _model(basis, seed)
    sites = [Site(input=f"blocks.{layer}.hook_resid_pre") for layer in (0, 1)]
    circuit = CircuitModel(model, {site: dictionary(basis[:_D_SAE]) for site in sites})
    random = Random(seed)
    pairs = [_pair(random, model) for _ in range(2 * n_pairs)]
    task = Task("planted-dictionary", pairs[:n_pairs], pairs[n_pairs:], logit_difference)
    examples = one_length(task.train, model)
    return Known(task.name, circuit, task, examples, _read(circuit, examples))


def _basis(seed: int) -> Float[Tensor, "d d"]:
    """Orthonormal rows: read features, unread features, others; the last is the mean direction that norms remove."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(_D, _D, generator=generator, dtype=torch.float64)
    random[:, 0] = 1
    return torch.linalg.qr(random)[0].t().flip(0)


def _model(basis: Float[Tensor, "d d"], seed: int) -> Model:
    """A model with random weights that read half of the features."""
    weights = _random_weights(seed)
    unread, constant, rest = basis[_D_SAE // 2 : _D_SAE], basis[_D_SAE], basis[_D_SAE + 1 : -1]
    for name, tensor in weights.items():
        if name.endswith(_READERS):
            tensor -= tensor @ unread.t() @ unread + (tensor @ constant)[:, None] * constant
    weights["pos.weight"] = weights["pos.weight"] @ rest.t() @ rest + _CONSTANT * constant
    generator = torch.Generator().manual_seed(seed + 1)
    embed = torch.zeros(D_VOCAB, _D, dtype=torch.float64)
    for half in (basis[: _D_SAE // 2], unread):
        chosen = torch.rand(D_VOCAB, len(half), generator=generator).argsort(dim=1)[:, :_PER_TOKEN]
        amounts = 1 + torch.rand(D_VOCAB, _PER_TOKEN, generator=generator, dtype=torch.float64)
        embed += (half[chosen] * amounts[..., None]).sum(1)
    sizes = {"d_model": _D, "n_layers": 2, "n_heads": 4, "d_head": _D // 4, "d_mlp": 4 * _D, "d_vocab": D_VOCAB,
             "n_ctx": N_CTX, "seed": seed, "act_fn": "gelu", "normalization_type": "LN"}
    return written_model("planted-dictionary", sizes, {**weights, "tok_embed.weight": embed})


def _random_weights(seed: int) -> dict[str, Tensor]:
    """Random normal weights with standard deviation 0.8/√d, as in native models, without biases; norm weights scale up."""
    block = {f"attn.{part}.weight": (_D, _D) for part in "qkvo"} | {
        "mlp.fc_in.weight": (4 * _D, _D), "mlp.fc_out.weight": (_D, 4 * _D),
    }
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    shapes |= {"pos.weight": (N_CTX, _D), "head.weight": (D_VOCAB, _D)}
    generator = torch.Generator().manual_seed(seed)
    norms = ("ln_out", *(f"layers.{i}.ln{n}" for i in range(2) for n in (1, 2)))
    return {
        **{name: 0.8 / _D**0.5 * torch.randn(shape, generator=generator).double() for name, shape in shapes.items()},
        **{f"{norm}.weight": torch.full((_D,), _CONSTANT / _D**0.5, dtype=torch.float64) for norm in norms},
    }


@torch.no_grad()
def _pair(random: Random, model: Model) -> Pair:
    """Two prompts that differ in two letters, including the last, and get different predictions."""
    while True:
        clean = random.choices(_ALPHABET, k=_N_TOKENS)
        corrupt = list(clean)
        for i in (random.randrange(_N_TOKENS - 1), _N_TOKENS - 1):
            corrupt[i] = random.choice([x for x in _ALPHABET if x != clean[i]])
        prompts = "".join(clean), "".join(corrupt)
        letters = [ids[-1] for ids in encode(model, _ALPHABET)]
        best = model.logits(torch.tensor(encode(model, prompts)))[:, -1, letters].argmax(1).tolist()
        if best[0] != best[1]:
            return Pair(*prompts, (_ALPHABET[best[0]],), (_ALPHABET[best[1]],))


def _read(circuit: CircuitModel, examples: Examples) -> tuple[frozenset[Node], ...]:
    """For each example, the read features that change."""
    moving = moving_features(circuit, examples)
    read = np.flatnonzero(moving.nodes.feature < _D_SAE // 2)
    triples = moving.nodes.triples
    return tuple(frozenset(triples[i] for i in read if row[i]) for row in moving.values.toarray())
