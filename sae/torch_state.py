"""What a caller may have set for torch as a whole, set aside while this code computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_torch_state() -> Iterator[None]:
    """While open, as if nobody had set anything: gradients, no inference mode, fp32, the CPU, no autocast.

    Also a decorator. Tensors that are made under inference mode could never be trained on, in a wider default type they
    would not go with those on disk.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # costs something at every call of torch, so it is not opened for nothing
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
