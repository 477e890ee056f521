"""Small models with random weights, for tests: parsing `native:...`, their network and their tokenizer."""

import math
from typing import Any

from torch import Tensor, nn

from sae.errors import SaescopeError

TINY = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_vocab": 512, "n_ctx": 128, "seed": 0}
_N_SPECIAL, _N_BYTES, _MIN_CTX = 3, 256, 16


class NativeNetwork(nn.Module):
    """A native model with the call signature of Hugging Face models."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        """Logits; `use_cache` is not supported and must be off."""
        assert not use_cache
        return self.network(input_ids)


def root_of(network: nn.Module) -> nn.Module:
    """The module tree whose twin the bridge wraps."""
    return network.network if isinstance(network, NativeNetwork) else network


def show_scores(attention: Any) -> None:
    """Make a native model's bridged attention fire `hook_attn_scores` before the softmax, so that edits take effect.

    TransformerLens fires it after the attention in native models, with the pattern.

    Args:
        attention: the bridge's attention of a block, causal and without rotary embeddings.
    """
    inner = attention.original_component
    assert inner.causal and inner.rotary is None and inner.kv_repeats == 1

    def forward(hidden_states: Tensor, pattern_fn: Any, **_: Any) -> tuple[Tensor, None]:
        q, k, v = (
            part(hidden_states).unflatten(-1, (inner.n_heads, inner.d_head)).transpose(1, 2)
            for part in (inner.q, inner.k, inner.v)
        )
        n = hidden_states.shape[1]
        scores = (q @ k.mT / inner.scale).masked_fill(inner.causal_mask[:n, :n], -math.inf)
        pattern = pattern_fn(attention.hook_attn_scores(scores).softmax(-1))
        return inner.o((pattern @ v).transpose(1, 2).flatten(2)), None

    inner.forward = forward


def native_spec(text: str) -> dict[str, int]:
    """Parse the sizes in `native:TEXT`.

    Raises:
        SaescopeError: it cannot be parsed, or the sizes are invalid.
    """
    spec = dict(TINY)
    for item in [] if text == "tiny" else text.split(","):
        key, _, value = item.partition("=")
        if key not in spec or not value.isdecimal():
            raise SaescopeError(
                f"native:{text}: cannot read {item!r}; use native:tiny, or give integers for any of "
                f"{', '.join(f'{k}={v}' for k, v in TINY.items())}."
            )
        spec[key] = int(value)
    least = {"d_vocab": _N_SPECIAL + _N_BYTES, "n_ctx": _MIN_CTX, "n_layers": 1, "n_heads": 1, "d_model": 1, "seed": 0}
    low = [key for key, value in least.items() if spec[key] < value]
    if low or spec["d_model"] % spec["n_heads"]:
        why = f"{low[0]} must be at least {least[low[0]]}" if low else "d_model must be a multiple of n_heads"
        raise SaescopeError(f"native:{text} cannot be built: {why}.")
    return spec


def byte_tokenizer(d_vocab: int, n_ctx: int) -> Any:
    """A tokenizer built in memory: BOS, EOS, padding, then one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == _N_BYTES and len(special) == _N_SPECIAL
    vocab = {piece: i for i, piece in enumerate([*special, *alphabet])}
    assert len(vocab) <= d_vocab
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=n_ctx
    )
