import torch

from sae import losses
from sae.code import from_dense


def test_gradients_of_l1_are_the_same_bits_every_time() -> None:
    """Large enough for torch to use several threads, whose order must not show."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(512, 2048, generator=generator).relu()
    seen = set()
    for _ in range(6):
        acts, norms = dense.clone().requires_grad_(), torch.rand(2048, generator=torch.Generator().manual_seed(1))
        norms.requires_grad_()
        losses.l1(from_dense(acts), norms).backward()
        assert norms.grad is not None and acts.grad is not None
        seen.add((norms.grad.numpy().tobytes(), acts.grad.numpy().tobytes()))
    assert len(seen) == 1
    torch.testing.assert_close(norms.grad, dense.sum(0) / 512)
