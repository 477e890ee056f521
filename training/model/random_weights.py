"""An untrained model with random weights, `random:NAME:SEED`: a control for findings in the model NAME.

All weights, embeddings included, are initialised by the architecture's own code, as before training ("step 0" of Heap et
al. 2501.17727). Tokenizer and architecture are those of NAME.
"""

import copy
from typing import Any

import torch
from torch import nn

from sae.errors import SaescopeError


def base_and_seed(name: str, rest: str) -> tuple[str, int]:
    """Parse `random:REST` into the model's name and the seed of the weights.

    Raises:
        SaescopeError: it cannot be parsed.
    """
    base, _, seed = rest.rpartition(":")
    if not base or base.startswith("random:") or not seed.isdecimal() or int(seed) >= 2**31:
        raise SaescopeError(
            f"{name} cannot be read: use random:NAME:SEED with a model's name and an integer below 2^31, for example "
            "random:smollm2-135m:0."
        )
    return base, int(seed)


def redrawn(network: nn.Module, seed: int) -> nn.Module:
    """A network of the same architecture and dtype with random weights from `seed`; `network` is unchanged.

    Args:
        network: a Hugging Face network.
    """
    config: Any = copy.deepcopy(network.config)
    dtype = next(network.parameters()).dtype
    config.dtype = torch.float32
    make: Any = type(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = make(config)
    return made.to(dtype).eval()
