"""Isolation from torch's global settings that a caller may have changed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Run with torch's defaults: gradients on, no inference mode, fp32, CPU, no autocast. Also a decorator.

    Tensors created in inference mode could never be trained, and another default dtype would not match saved weights.
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
        # this context slows down every torch call, so enter it only if needed
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
