"""Tensors as they are at one moment, copied to host memory in the form of a safetensors file.

From a CUDA device they are copied by the device itself, into page-locked memory and in the order of its work: the copies
wait for the steps that were asked for before, steps asked for later wait for the copies (about 20 ms a GB), and the thread
that asks for all of them waits for nothing.
"""

import contextlib
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from sae.io.files import tensors_head


class Snapshot:
    """Host memory for tensors of one device, taken once and filled again and again."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Memory for tensors such as these; nothing is copied yet."""
        lying = {name: as_it_lies(tensor) for name, tensor in tensors.items()}
        self.turned = [name for name, tensor in tensors.items() if is_turned(tensor)]
        """Matrices of which the transpose is kept, because that is how their numbers lie in memory."""
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
        """Let the device write into the memory by itself; where the system permits that not, copying takes longer.

        torch's own page-locked memory would be of the next power of two, and never given back.
        """
        self._memory.fill_(0)  # by several threads; the driver alone would take four times as long over untouched pages
        runtime, address = torch.cuda.cudart(), self._memory.data_ptr()
        if int(runtime.cudaHostRegister(address, self._memory.nbytes, 0)) == 0:
            weakref.finalize(self, runtime.cudaHostUnregister, address).atexit = False
        else:
            with contextlib.suppress(RuntimeError):  # the refusal is reported once more, by whatever is launched next
                torch.zeros(1, device=device)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors of the same names, shapes and types. Whoever had `bytes` before must have done with them."""
        assert tensors.keys() == self._places.keys()
        for name, place in self._places.items():
            place.copy_(as_it_lies(tensors[name]), non_blocking=self.device is not None)
        if self.device is not None:
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record(torch.cuda.current_stream(self.device))

    def tensors(self) -> dict[str, Tensor]:
        """The copies by name, in the snapshot's own memory, as soon as they are there; any thread may ask."""
        self._wait()
        return {name: place.t() if name in self.turned else place for name, place in self._places.items()}

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def bytes(self) -> memoryview:
        """The file's bytes, in the snapshot's own memory, once the device has copied them; any thread may ask."""
        self._wait()
        return self._memory.numpy().data


def is_turned(tensor: Tensor) -> bool:
    """Whether a matrix lies in memory column by column."""
    return tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous()


def as_it_lies(tensor: Tensor) -> Tensor:
    """A tensor without its history, or the transpose of one that is turned."""
    return (tensor.t() if is_turned(tensor) else tensor).detach()
