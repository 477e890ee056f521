from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae.io.files import write_tensors
from sae.io.snapshot import Snapshot, as_it_lies

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def state(device: str) -> dict[str, Tensor]:
    """Every kind of tensor a trainer has: matrices that lie either way, scalars, counters, flags, one of a single row."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 7, generator=generator)
    made = {
        "a": matrix, "turned": matrix.t(), "row": matrix[:1], "column": matrix[:1].t(), "scalar": torch.tensor(2.5),
        "fired": torch.arange(300), "pruned": matrix[:, 0] > 0, "none": torch.zeros(0, 3), "b": matrix[:, 3].contiguous(),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_its_bytes_are_those_of_a_file_of_the_tensors(device: str, tmp_path: Path) -> None:
    tensors = state(device)
    snapshot = Snapshot(tensors)
    snapshot.take(tensors)
    write_tensors(tmp_path / "plain", {name: as_it_lies(tensor) for name, tensor in tensors.items()})
    assert snapshot.bytes() == (tmp_path / "plain").read_bytes()
    assert snapshot.turned == ["turned"]
    (tmp_path / "a.safetensors").write_bytes(snapshot.bytes())
    there = load_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        torch.testing.assert_close(there[name].t() if name == "turned" else there[name], tensor.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_what_happens_afterwards_is_not_in_it(device: str) -> None:
    """On a device the tensors change while they are still being copied: 256 MB, in 16 parts."""
    n = 4_000_000 if device == "cuda" else 1000
    tensors = {str(i): torch.full((n,), float(i), device=device) for i in range(16)}
    snapshot = Snapshot(tensors)
    for round in range(3):
        expected = {name: tensor.clone() for name, tensor in tensors.items()}
        snapshot.take(tensors)
        for _ in range(20):
            for tensor in tensors.values():
                tensor.add_(1)
        plain = Snapshot(expected)
        plain.take(expected)
        assert snapshot.bytes() == plain.bytes(), round


@pytest.mark.gpu
def test_a_device_writes_into_locked_pages_or_into_any() -> None:
    class Refusing:
        @staticmethod
        def cudaHostRegister(*_: int) -> int:
            return 2

    tensors = state("cuda")
    locked = Snapshot(tensors)
    assert locked._memory.is_pinned()
    locked.take(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "cudart", Refusing)
        any_memory = Snapshot(tensors)
    assert not any_memory._memory.is_pinned()
    any_memory.take(tensors)
    assert any_memory.bytes() == locked.bytes()
