"""Hand-written transformers: named residual-stream directions, and heads and neurons that read and write them.

ReLU, no norms, biases only on neurons. All other weights are zero. Every dictionary has one feature per name.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.controller import Sparsity
from sae.variants.relu import ReLU, ReLUConfig
from training.model.language_model import Model
from training.model.load import native_model
from training.model.native import byte_tokenizer

Amount = int | float
D_VOCAB, N_CTX = 259, 32


class Wiring:
    """Builder of a hand-written transformer.

    Attributes:
        names: names of the directions, one residual-stream axis each.
    """

    def __init__(self, names: Sequence[str], *, n_layers: int, n_heads: int = 1, d_head: int = 1, d_mlp: int = 1) -> None:
        self.names = tuple(names)
        self.axis = {name: i for i, name in enumerate(names)}
        self.sizes: dict[str, Any] = {
            "d_model": len(names), "n_layers": n_layers, "n_heads": n_heads, "d_head": d_head, "d_mlp": d_mlp,
            "d_vocab": D_VOCAB, "n_ctx": N_CTX, "seed": 0, "act_fn": "relu", "normalization_type": None,
        }
        self._tokenizer = byte_tokenizer(D_VOCAB, N_CTX)
        self.weights: dict[str, Tensor] = {}

    def token(self, text: str, **amounts: Amount) -> None:
        """Set what a character writes at its position."""
        self._write("tok_embed.weight", self._token(text), amounts)

    def position(self, position: int, **amounts: Amount) -> None:
        """Set what a position writes; BOS is at 0."""
        self._write("pos.weight", position, amounts)

    def head(
        self, layer: int, head: int, match: Mapping[str, str], values: Mapping[str, str], *, score: Amount
    ) -> None:
        """Add a head that attends from a query direction to the matching key direction.

        Args:
            match: query direction → key direction. Each adds score · query · key to the pre-softmax score.
            values: direction read at the key → direction written.
        """
        attn, first, root = f"layers.{layer}.attn", head * self.sizes["d_head"], self.sizes["d_head"] ** 0.5
        assert max(len(match), len(values)) <= self.sizes["d_head"]
        for i, (query, key) in enumerate(match.items()):
            self._tensor(f"{attn}.q.weight")[first + i, self.axis[query]] = score * root
            self._tensor(f"{attn}.k.weight")[first + i, self.axis[key]] = 1
        for i, (read, written) in enumerate(values.items()):
            self._tensor(f"{attn}.v.weight")[first + i, self.axis[read]] = 1
            self._tensor(f"{attn}.o.weight")[self.axis[written], first + i] = 1

    def neuron(
        self, layer: int, neuron: int, reads: Mapping[str, Amount], bias: Amount, writes: Mapping[str, Amount]
    ) -> None:
        """Add a neuron: ReLU(Σ reads + bias) times what it writes."""
        mlp = f"layers.{layer}.mlp"
        self._write(f"{mlp}.fc_in.weight", neuron, reads)
        self._tensor(f"{mlp}.fc_in.bias")[neuron] = bias
        for name, amount in writes.items():
            self._tensor(f"{mlp}.fc_out.weight")[self.axis[name], neuron] = amount

    def logit(self, text: str, **amounts: Amount) -> None:
        """Set what a character's logit reads."""
        self._write("head.weight", self._token(text), amounts)

    def model(self, name: str) -> Model:
        """The model, in fp64."""
        return written_model(name, self.sizes, self.weights)

    def dictionary(self) -> ReLU:
        """An SAE with one feature per name, in order: the direction itself, without bias."""
        return dictionary(torch.eye(len(self.names), dtype=torch.float64))

    def _token(self, text: str) -> int:
        (token,) = self._tokenizer(text, add_special_tokens=False).input_ids
        return int(token)

    def _write(self, name: str, row: int, amounts: Mapping[str, Amount]) -> None:
        for direction, amount in amounts.items():
            self._tensor(name)[row, self.axis[direction]] += amount

    def _tensor(self, name: str) -> Tensor:
        s = self.sizes
        inner, d = s["n_heads"] * s["d_head"], s["d_model"]
        shapes = {
            "tok_embed.weight": (s["d_vocab"], d), "pos.weight": (s["n_ctx"], d), "head.weight": (s["d_vocab"], d),
            "o.weight": (d, inner), "fc_in.weight": (s["d_mlp"], d), "fc_in.bias": (s["d_mlp"],),
            "fc_out.weight": (d, s["d_mlp"]),
        }
        shape = next((shape for end, shape in shapes.items() if name.endswith(end)), (inner, d))
        return self.weights.setdefault(name, torch.zeros(shape, dtype=torch.float64))


def written_model(name: str, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Model:
    """A native fp64 model with these weights; its identity contains their hash."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].numpy().tobytes())
    identity = {"name": name, **sizes, "sha256": digest.hexdigest(), "dtype": "float64"}
    return native_model(name, identity, sizes, weights, dtype=torch.float64)


def dictionary(directions: Tensor) -> ReLU:
    """An SAE whose features are orthonormal directions `[d_sae, d]`; a feature's activation is its positive projection."""
    d_sae, d = directions.shape
    sae = ReLU(ReLUConfig(d_sae=d_sae, sparsity=Sparsity(coefficient=1.0)), d).double()
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.t())
    return sae
