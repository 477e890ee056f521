"""Snapshots of tensors in host memory, laid out as a safetensors file.

On CUDA, tensors are copied asynchronously into pinned memory, in stream order: the copies wait for steps launched before,
later steps wait for the copies (about 20 ms per GB), and the launching thread never blocks.
"""

import contextlib
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from sae.io.files import tensors_head


class Snapshot:
    """Host buffer for the tensors of one device, allocated once and reused."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate memory for tensors such as these; nothing is copied yet."""
        lying = {name: as_it_lies(tensor) for name, tensor in tensors.items()}
        self.turned = [name for name, tensor in tensors.items() if is_turned(tensor)]
        """Matrices stored as their transpose, because they are column-major in memory."""
        self.device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._copied: torch.cuda.Event | None = None
        head, order = tensors_head(lying)
        self._memory = torch.empty(len(head) + sum(tensor.nbytes for tensor in lying.values()), dtype=torch.uint8)
        if self.device is not None:
            self._lock_pages(self.device)
        self._memory[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._places, at = {}, len(head)
        for name in order:
            tensor = lying[name]
            self._places[name] = self._memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            at += tensor.nbytes

    def _lock_pages(self, device: torch.device) -> None:
        """Pin the memory so that the device can write to it directly. If the system refuses, copies are slower.

        torch's own pinned allocations are rounded up to a power of two and never freed.
        """
        self._memory.fill_(0)  # touch pages with several threads; the driver alone would take four times as long
        runtime, address = torch.cuda.cudart(), self._memory.data_ptr()
        if int(runtime.cudaHostRegister(address, self._memory.nbytes, 0)) == 0:
            weakref.finalize(self, runtime.cudaHostUnregister, address).atexit = False
        else:
            with contextlib.suppress(RuntimeError):  # the error is reported again by the next launch
                torch.zeros(1, device=device)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors of the same names, shapes and dtypes. Earlier results of `bytes` must no longer be in use."""
        assert tensors.keys() == self._places.keys()
        for name, place in self._places.items():
            place.copy_(as_it_lies(tensors[name]), non_blocking=self.device is not None)
        if self.device is not None:
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record(torch.cuda.current_stream(self.device))

    def tensors(self) -> dict[str, Tensor]:
        """The copies by name, as views of the snapshot's memory. Waits until they are complete; thread-safe."""
        self._wait()
        return {name: place.t() if name in self.turned else place for name, place in self._places.items()}

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def bytes(self) -> memoryview:
        """The file's bytes, as a view of the snapshot's memory. Waits until they are complete; thread-safe."""
        self._wait()
        return self._memory.numpy().data


def is_turned(tensor: Tensor) -> bool:
    """Whether a matrix is column-major."""
    return tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous()


def as_it_lies(tensor: Tensor) -> Tensor:
    """The tensor detached, transposed if it is column-major."""
    return (tensor.t() if is_turned(tensor) else tensor).detach()
