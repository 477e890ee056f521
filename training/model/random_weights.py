"""A model with weights that nothing was learnt by: `random:NAME:SEED`, a control for whatever is found in the model NAME.

Every weight, embeddings included, is drawn anew as the architecture's own code draws it before training ("step 0" of Heap
et al. 2501.17727). Tokenizer and architecture are those of NAME.
"""

import copy
from typing import Any

import torch
from torch import nn

from sae.errors import SaescopeError


def base_and_seed(name: str, rest: str) -> tuple[str, int]:
    """What `random:REST` names: the model, and the seed of its new weights.

    Raises:
        SaescopeError: it is not understood.
    """
    base, _, seed = rest.rpartition(":")
    if not base or base.startswith("random:") or not seed.isdecimal() or int(seed) >= 2**31:
        raise SaescopeError(
            f"{name} is not understood: write random:NAME:SEED with a model's name and a whole number below 2^31, for "
            "example random:smollm2-135m:0."
        )
    return base, int(seed)


def redrawn(network: nn.Module, seed: int) -> nn.Module:
    """The same architecture with weights drawn by `seed`, in the dtype of `network`, which is left alone.

    Args:
        network: of Hugging Face.
    """
    config: Any = copy.deepcopy(network.config)
    dtype = next(network.parameters()).dtype
    config.dtype = torch.float32
    make: Any = type(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = make(config)
    return made.to(dtype).eval()
